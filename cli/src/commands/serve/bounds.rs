//! Limits on what clients may use of the server: quotas, connections, bytes in flight, time.

use std::num::NonZeroU64;

use millstream_broker::broker::quota::{ClientId, QuotaSettings, Rates};
use millstream_broker::grpc::ServeSettings;

use crate::amount;
use crate::exit::Usage;

/// The limits, as given on the command line.
#[derive(Debug, clap::Args)]
pub(crate) struct BoundsArgs {
    /// Maximum bytes of records that each client may produce per second; requests beyond it are delayed [default: no
    /// limit]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU64>)]
    produce_bytes_per_s_max: Option<NonZeroU64>,
    /// Maximum bytes of records that each client may fetch per second; requests beyond it are delayed [default: no
    /// limit]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU64>)]
    fetch_bytes_per_s_max: Option<NonZeroU64>,
    /// Different limits for one client, by its id or IP address; may be given more than once
    #[arg(long = "quota", value_name = "CLIENT_ID=produce:N,fetch:M", value_parser = parse)]
    quotas: Vec<Quota>,
    /// Maximum number of connections; further connections are closed at once [default: 10000]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU64>)]
    connections_max: Option<NonZeroU64>,
    /// Maximum bytes of one connection's produce requests that wait for the disk; further requests are delayed
    /// [default: 33554432]
    #[arg(long, value_name = "N", value_parser = amount::positive::<NonZeroU64>)]
    connection_bytes_in_flight_max: Option<NonZeroU64>,
    /// Maximum duration of a call with one response, unless its client asks for a shorter one [default: 60000]
    #[arg(long, value_name = "MS", value_parser = amount::positive::<NonZeroU64>)]
    call_deadline_ms: Option<NonZeroU64>,
}

impl BoundsArgs {
    /// Returns the quotas.
    ///
    /// # Errors
    /// If a client is named twice.
    pub(super) fn quotas(&self) -> Result<QuotaSettings, Usage> {
        let default = Rates {
            produce_bytes_per_s_max: self.produce_bytes_per_s_max,
            fetch_bytes_per_s_max: self.fetch_bytes_per_s_max,
        };
        let mut settings = QuotaSettings { default, ..QuotaSettings::default() };
        for Quota { client, rates } in &self.quotas {
            if settings.by_client.insert(client.clone(), *rates).is_some() {
                return Err(Usage(format!(
                    "--quota: client {client} is given twice: put both limits into one --quota"
                )));
            }
        }
        Ok(settings)
    }

    /// Returns the other limits. A limit larger than `usize` becomes `usize::MAX`.
    pub(super) fn serve_settings(&self) -> ServeSettings {
        let default = ServeSettings::default();
        let count = |said: Option<NonZeroU64>, default: usize| {
            said.map_or(default, |said| usize::try_from(said.get()).unwrap_or(usize::MAX))
        };
        ServeSettings {
            connections_max: count(self.connections_max, default.connections_max),
            connection_bytes_in_flight_max: count(
                self.connection_bytes_in_flight_max,
                default.connection_bytes_in_flight_max,
            ),
            call_deadline_ms: self.call_deadline_ms.map_or(default.call_deadline_ms, NonZeroU64::get),
            ..default
        }
    }
}

/// A parsed `--quota`.
#[derive(Clone, Debug)]
struct Quota {
    client: ClientId,
    rates: Rates,
}

/// Parses one `--quota`.
///
/// # Errors
/// A message that says what is wrong with the text.
fn parse(text: &str) -> Result<Quota, String> {
    let form = "use CLIENT_ID=produce:N,fetch:M, in bytes per second; one of the two may be left out";
    let (client, rates) = text.split_once('=').ok_or_else(|| format!("there is no '=': {form}"))?;
    let client = ClientId::new(client).map_err(|error| error.to_string())?;
    let mut read = Rates::default();
    for part in rates.split(',') {
        let (kind, value) = part.split_once(':').ok_or_else(|| format!("{part:?} is not a limit: {form}"))?;
        let rate = match kind {
            "produce" => &mut read.produce_bytes_per_s_max,
            "fetch" => &mut read.fetch_bytes_per_s_max,
            _ => return Err(format!("{kind:?} cannot be limited: {form}")),
        };
        let value: NonZeroU64 = amount::positive(value)
            .map_err(|help| format!("{kind}: {value:?} is not a number of bytes per second: {help}"))?;
        if let Some(before) = rate.replace(value) {
            return Err(format!("{kind} is given twice, {before} and {value}: remove one"));
        }
    }
    Ok(Quota { client, rates: read })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Said {
        #[command(flatten)]
        bounds: BoundsArgs,
    }

    fn said(arguments: &[&str]) -> BoundsArgs {
        Said::parse_from([&["serve"], arguments].concat()).bounds
    }

    #[test]
    fn the_help_says_the_defaults_that_hold() {
        let (help, settings) = (Said::command().render_long_help().to_string(), said(&[]).serve_settings());
        let values = [settings.connections_max as u64, settings.connection_bytes_in_flight_max as u64];
        for value in values.into_iter().chain([settings.call_deadline_ms]) {
            assert!(help.contains(&format!("[default: {value}]")), "{value} is not in {help}");
        }
        assert_eq!(said(&["--connections-max", "7"]).serve_settings().connections_max, 7);
        assert_eq!(said(&[]).quotas().ok(), Some(QuotaSettings::default()));
    }

    #[test]
    fn a_client_has_one_quota() {
        let twice = said(&["--quota", "a=produce:1", "--quota", "b=fetch:1", "--quota", "a=fetch:1"]);
        assert!(twice.quotas().unwrap_err().to_string().contains("client a is given twice"));
    }

    #[test]
    fn both_bounds_or_one_in_any_order() {
        let rates = |text| {
            let rates = parse(text).unwrap().rates;
            [rates.produce_bytes_per_s_max, rates.fetch_bytes_per_s_max].map(|rate| rate.map(NonZeroU64::get))
        };
        assert_eq!(rates("a=produce:1,fetch:2"), [Some(1), Some(2)]);
        assert_eq!(rates("a=fetch:2,produce:1"), [Some(1), Some(2)]);
        assert_eq!(rates("10.0.0.7=fetch:2"), [None, Some(2)]);
        assert_eq!(parse("::1=produce:1").unwrap().client, ClientId::new("::1").unwrap());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_value() {
        for (text, words) in [
            ("a", "'='"),
            ("=produce:1", "client id"),
            ("a b=produce:1", "\"a b\""),
            ("a=", "\"\""),
            ("a=produce", "\"produce\""),
            ("a=produce:1,", "\"\""),
            ("a=write:1", "\"write\""),
            ("a=produce:0", "\"0\""),
            ("a=produce:-1", "\"-1\""),
            ("a=produce:1M", "\"1M\""),
            ("a=produce:1,produce:2", "twice, 1 and 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
