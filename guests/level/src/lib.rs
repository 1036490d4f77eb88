//! Keeps log lines at or above `level`. A line is JSON with a field `level`, or text that contains the name of the
//! level as a word.

use std::borrow::Cow;

use millstream::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

#[derive(Deserialize)]
pub struct Settings {
    level: Level,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    level: Cow<'a, str>,
}

#[millstream::filter]
pub fn level(record: &Record, settings: &Settings) -> Result<bool> {
    let text = record.value_str()?;
    let level = match record.json::<Line>() {
        Ok(line) => parse(&line.level),
        Err(_) => text.split(|c: char| !c.is_ascii_alphabetic()).find_map(parse),
    };
    match level {
        Some(level) => Ok(level >= settings.level),
        None => bail!("the line contains no level (trace, debug, info, warn, error, fatal): {text:?}"),
    }
}

fn parse(word: &str) -> Option<Level> {
    Some(match word.to_ascii_lowercase().as_str() {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" | "notice" => Level::Info,
        "warn" | "warning" => Level::Warn,
        "error" | "err" => Level::Error,
        "fatal" | "critical" | "panic" => Level::Fatal,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_lines_are_understood() {
        let settings = Settings { level: Level::Warn };
        let keeps = |line: &str| level(&Record::of(line), &settings).unwrap();
        assert!(keeps(r#"{"level":"ERROR","msg":"x"}"#));
        assert!(!keeps(r#"{"level":"info","msg":"x"}"#));
        assert!(keeps("2026-11-21 [WARN] disk is full"));
        assert!(!keeps("2026-11-21 DEBUG error-free"));
    }

    #[test]
    fn a_line_without_a_level_fails() {
        let error = level(&Record::of("hello"), &Settings { level: Level::Warn }).unwrap_err();
        assert!(error.to_string().contains("contains no level"));
    }
}
