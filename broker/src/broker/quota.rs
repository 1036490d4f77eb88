//! Quotas limit the bytes per second that a client may produce and fetch, by client id (Kafka's KIP-13).
//!
//! The requests of a client over its quota are delayed, never refused. There is a token bucket for each client and
//! kind, which holds one second's worth of the client's rate. A request may take more than the bucket holds; the next
//! request then waits until the debt is paid. This module knows nothing of requests: `caller.rs` decides when they
//! wait.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::hash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::BrokerError;
use crate::name;

/// The capacity of a bucket, as time at its rate. A client that was idle may transfer this much at once.
const BURST: Duration = Duration::from_secs(1);

/// Maximum number of buckets, of about 200 bytes each. If a client keeps inventing new client ids, the server forgets
/// old ones instead of using more memory.
const BUCKETS_MAX: usize = 10_000;

/// A bucket that has not been used for this long is forgotten together with its metric. It is full long before that,
/// but the metric is kept for readers.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Minimum time between two searches for idle buckets.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// Identifies a client for quotas: the name that the client gives itself or, without one, its IP address. Cheap to
/// clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// Checks a client id, which must follow Kafka's rule for names or be an IP address.
    ///
    /// # Errors
    /// [`BrokerError::InvalidArgument`].
    pub fn new(id: &str) -> Result<Self, BrokerError> {
        if name::is_valid(id) {
            return Ok(Self(id.into()));
        }
        id.parse::<IpAddr>().map(Self::from).map_err(|_| BrokerError::InvalidArgument {
            what: "client id",
            value: format!("{:?}", name::shortened(id)),
            allowed: "use 1 to 249 of the characters a-z A-Z 0-9 . _ -, or an IP address".to_owned(),
        })
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<IpAddr> for ClientId {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical().to_string().into())
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// The kind of traffic that a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuotaKind {
    /// Bytes of records that a client sends.
    Produce,
    /// Bytes of record batches that are sent to a client.
    Fetch,
}

impl QuotaKind {
    /// Returns `produce` or `fetch`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Fetch => "fetch",
        }
    }
}

/// The rate limits of one client. `None` means unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Maximum bytes per second that the client may produce.
    pub produce_bytes_per_s_max: Option<NonZeroU64>,
    /// Maximum bytes per second that the client may fetch.
    pub fetch_bytes_per_s_max: Option<NonZeroU64>,
}

impl Rates {
    fn of(&self, kind: QuotaKind) -> Option<NonZeroU64> {
        match kind {
            QuotaKind::Produce => self.produce_bytes_per_s_max,
            QuotaKind::Fetch => self.fetch_bytes_per_s_max,
        }
    }
}

/// The rate limits of all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaSettings {
    /// The rates of each client that is not in `by_client`.
    pub default: Rates,
    /// The rates of individual clients. A rate that is `None` falls back to `default`.
    pub by_client: BTreeMap<ClientId, Rates>,
}

impl QuotaSettings {
    fn rate(&self, client: &ClientId, kind: QuotaKind) -> Option<NonZeroU64> {
        let own = self.by_client.get(client).and_then(|rates| rates.of(kind));
        own.or_else(|| self.default.of(kind))
    }
}

/// The buckets of all clients.
#[derive(Debug)]
pub struct Quotas {
    settings: QuotaSettings,
    buckets: Mutex<Buckets>,
}

/// How long a client's requests have been delayed.
#[derive(Clone, Debug)]
pub(crate) struct Throttled {
    pub(crate) client: ClientId,
    pub(crate) kind: QuotaKind,
    /// Total delay of all its requests.
    pub(crate) total: Duration,
}

impl Quotas {
    /// Creates quotas with full buckets.
    pub fn new(settings: QuotaSettings) -> Self {
        Self { settings, buckets: Mutex::default() }
    }

    /// Waits until the client has no debt. Takes nothing. Cancel-safe.
    pub async fn paid(&self, client: &ClientId, kind: QuotaKind) {
        if let Some(bucket) = self.bucket(client, kind) {
            drop(bucket.paid().await);
        }
    }

    /// Takes `bytes` once the client's debt is paid. Waiting requests are served in order of arrival. If the future is
    /// dropped, nothing is taken.
    pub async fn take(&self, client: &ClientId, kind: QuotaKind, bytes: usize) {
        if bytes > 0
            && let Some(bucket) = self.bucket(client, kind)
        {
            let _turn = bucket.paid().await;
            bucket.charge(bytes as u64, Instant::now());
        }
    }

    /// Returns how long the client's next request waits for what the earlier ones took.
    pub fn owed(&self, client: &ClientId, kind: QuotaKind) -> Duration {
        self.bucket(client, kind).map_or(Duration::ZERO, |bucket| bucket.debt(Instant::now()))
    }

    /// Returns the delays of all clients that had to wait and whose buckets are not forgotten.
    pub(crate) fn throttled(&self) -> Vec<Throttled> {
        let buckets = self.buckets.lock();
        let throttled = buckets.by_client.iter().filter_map(|((client, kind), kept)| {
            let total = Duration::from_millis(kept.bucket.throttled_ms.load(Ordering::Relaxed));
            (!total.is_zero()).then(|| Throttled { client: client.clone(), kind: *kind, total })
        });
        throttled.collect()
    }

    fn bucket(&self, client: &ClientId, kind: QuotaKind) -> Option<Arc<Bucket>> {
        let bytes_per_s_max = self.settings.rate(client, kind)?;
        Some(self.buckets.lock().get((client.clone(), kind), bytes_per_s_max, Instant::now()))
    }
}

#[derive(Debug, Default)]
struct Buckets {
    by_client: HashMap<(ClientId, QuotaKind), Kept>,
    forgotten_at: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    bucket: Arc<Bucket>,
    used_at: Instant,
}

impl Buckets {
    fn get(&mut self, key: (ClientId, QuotaKind), bytes_per_s_max: NonZeroU64, now: Instant) -> Arc<Bucket> {
        if self.forgotten_at.is_none_or(|at| now.saturating_duration_since(at) >= FORGET_INTERVAL) {
            self.forget_idle(now);
        }
        if let Some(kept) = self.by_client.get_mut(&key) {
            kept.used_at = now;
            return kept.bucket.clone();
        }
        if self.by_client.len() >= BUCKETS_MAX {
            self.forget_older_half();
        }
        let bucket = Arc::new(Bucket::new(bytes_per_s_max, now));
        self.by_client.insert(key, Kept { bucket: bucket.clone(), used_at: now });
        bucket
    }

    /// Forgets the buckets that have been idle for [`IDLE_MAX`], unless they are still in debt. A forgotten bucket is
    /// full, so a new one is equivalent.
    fn forget_idle(&mut self, now: Instant) {
        self.forgotten_at = Some(now);
        self.by_client.retain(|_, kept| {
            now.saturating_duration_since(kept.used_at) < IDLE_MAX || !kept.bucket.debt(now).is_zero()
        });
    }

    /// Forgets the half of the buckets that was used least recently. Any debt of these clients is cancelled.
    fn forget_older_half(&mut self) {
        let mut used: Vec<Instant> = self.by_client.values().map(|kept| kept.used_at).collect();
        let middle = used.len() / 2;
        let (_, median, _) = used.select_nth_unstable(middle);
        let median = *median;
        let mut left = middle;
        self.by_client.retain(|_, kept| {
            let forgotten = left > 0 && kept.used_at <= median;
            left -= usize::from(forgotten);
            !forgotten
        });
    }
}

/// The token bucket of one client for one kind of traffic.
#[derive(Debug)]
struct Bucket {
    bytes_per_s_max: NonZeroU64,
    /// The time at which the bucket is full again if nothing is taken from it.
    full_at: Mutex<Instant>,
    /// Held while a request waits for the debt to be paid. tokio's mutex is fair, so requests wait in order of arrival.
    turn: tokio::sync::Mutex<()>,
    throttled_ms: AtomicU64,
}

impl Bucket {
    fn new(bytes_per_s_max: NonZeroU64, now: Instant) -> Self {
        let (turn, throttled_ms) = (tokio::sync::Mutex::new(()), AtomicU64::new(0));
        Self { bytes_per_s_max, full_at: Mutex::new(now), turn, throttled_ms }
    }

    /// Returns how long it takes until the debt, the bytes taken beyond the burst, is paid.
    fn debt(&self, now: Instant) -> Duration {
        self.full_at.lock().saturating_duration_since(now).saturating_sub(BURST)
    }

    fn charge(&self, bytes: u64, now: Instant) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s_max.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut full_at = self.full_at.lock();
        *full_at = (*full_at).max(now) + cost;
    }

    /// Waits for the requests before this one, and then until the debt is paid.
    async fn paid(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let _waiting = Waiting { bucket: self, since: Instant::now() };
        let turn = self.turn.lock().await;
        let debt = self.debt(Instant::now());
        if !debt.is_zero() {
            tokio::time::sleep(debt).await;
        }
        turn
    }
}

/// Counts the time that a request waits, even if the request is given up. Less than a millisecond is not counted,
/// because timers have no finer resolution.
struct Waiting<'a> {
    bucket: &'a Bucket,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        if waited_ms > 0 {
            self.bucket.throttled_ms.fetch_add(waited_ms, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn client(id: &str) -> ClientId {
        ClientId::new(id).unwrap()
    }

    fn rate(bytes_per_s: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes_per_s).unwrap()
    }

    #[test]
    fn a_burst_of_a_second_is_free_and_the_rest_is_waited_for() {
        let now = Instant::now();
        let bucket = Bucket::new(rate(1_000), now);
        bucket.charge(1_000, now);
        assert_eq!(bucket.debt(now), Duration::ZERO);
        bucket.charge(2_500, now);
        assert_eq!(bucket.debt(now), Duration::from_millis(2_500));
        assert_eq!(bucket.debt(now + Duration::from_millis(1_000)), Duration::from_millis(1_500));
        assert_eq!(bucket.debt(now + Duration::from_millis(2_500)), Duration::ZERO);
    }

    #[test]
    fn an_idle_hour_saves_up_no_more_than_the_burst() {
        let now = Instant::now();
        let bucket = Bucket::new(rate(1_000), now);
        let later = now + Duration::from_secs(3_600);
        bucket.charge(1_500, later);
        assert_eq!(bucket.debt(later), Duration::from_millis(500));
    }

    /// A client that takes parts of any size whenever it has no debt gets its rate.
    #[test]
    fn over_time_the_rate_holds() {
        for part in [1, 900, 5_000, 123_456] {
            let begin = Instant::now();
            let bucket = Bucket::new(rate(10_000), begin);
            let (mut now, mut taken) = (begin, 0);
            while now < begin + Duration::from_secs(600) {
                bucket.charge(part, now);
                taken += part;
                now += bucket.debt(now);
                // Without this check, the loop would never end if the bucket never had a debt.
                assert!(taken <= 10_000 * 602 + part, "parts of {part}: {taken}");
            }
            assert!(taken >= 10_000 * 600, "parts of {part}: {taken}");
        }
    }

    #[test]
    fn the_largest_request_at_the_smallest_rate_is_no_overflow() {
        let now = Instant::now();
        let bucket = Bucket::new(rate(1), now);
        bucket.charge(64 << 20, now);
        assert_eq!(bucket.debt(now), Duration::from_secs((64 << 20) - 1));
    }

    #[test]
    fn an_override_leaves_open_what_it_does_not_name() {
        let default = Rates { produce_bytes_per_s_max: Some(rate(1)), fetch_bytes_per_s_max: Some(rate(2)) };
        let own = Rates { produce_bytes_per_s_max: Some(rate(3)), fetch_bytes_per_s_max: None };
        let settings = QuotaSettings { default, by_client: [(client("a"), own)].into() };
        let rates = |id: &str| [QuotaKind::Produce, QuotaKind::Fetch].map(|kind| settings.rate(&client(id), kind));
        assert_eq!(rates("a"), [Some(rate(3)), Some(rate(2))]);
        assert_eq!(rates("b"), [Some(rate(1)), Some(rate(2))]);
    }

    #[test]
    fn buckets_are_bounded_and_the_last_used_ones_stay() {
        let begin = Instant::now();
        let mut buckets = Buckets::default();
        let mut get = |number: usize, at: u64| {
            buckets.get((client(&format!("c{number}")), QuotaKind::Fetch), rate(1), begin + Duration::from_millis(at));
            buckets.by_client.len()
        };
        for number in 0..3 * BUCKETS_MAX {
            assert!(get(number, number as u64) <= BUCKETS_MAX);
        }
        let last = (client(&format!("c{}", 3 * BUCKETS_MAX - 1)), QuotaKind::Fetch);
        assert!(buckets.by_client.contains_key(&last));
        // Half of the buckets are forgotten even if all were used at the same time.
        let mut buckets = Buckets::default();
        for number in 0..=BUCKETS_MAX {
            buckets.get((client(&format!("c{number}")), QuotaKind::Fetch), rate(1), begin);
        }
        assert_eq!(buckets.by_client.len(), BUCKETS_MAX / 2 + 1);
    }

    #[test]
    fn what_is_idle_is_forgotten_unless_it_is_owed() {
        let begin = Instant::now();
        let mut buckets = Buckets::default();
        let key = |id: &str| (client(id), QuotaKind::Produce);
        buckets.get(key("idle"), rate(1), begin);
        buckets.get(key("owes"), rate(1), begin).charge(100_000, begin);
        buckets.get(key("new"), rate(1), begin + IDLE_MAX);
        assert!(!buckets.by_client.contains_key(&key("idle")));
        assert!(buckets.by_client.contains_key(&key("owes")));
    }

    #[test]
    fn addresses_and_names_are_client_ids() {
        assert_eq!(client("::ffff:10.0.0.7"), client("10.0.0.7"));
        assert_eq!(client("::1").as_str(), "::1");
        for bad in ["", "a b", "ü", &"x".repeat(250), "a=b"] {
            let error = ClientId::new(bad).unwrap_err().to_string();
            assert!(error.contains("client id"), "{error}");
        }
    }

    fn produce_rate(bytes_per_s: u64) -> Quotas {
        let default = Rates { produce_bytes_per_s_max: Some(rate(bytes_per_s)), fetch_bytes_per_s_max: None };
        Quotas::new(QuotaSettings { default, by_client: BTreeMap::new() })
    }

    // The test needs a runtime for its timers, but waits for nothing.
    #[tokio::test]
    async fn who_gives_up_waiting_takes_nothing() {
        let (quotas, a) = (produce_rate(1), client("a"));
        let take = |bytes| quotas.take(&a, QuotaKind::Produce, bytes).now_or_never();
        assert!(take(1_000_000).is_some(), "the first request does not wait");
        let bucket = quotas.bucket(&a, QuotaKind::Produce).unwrap();
        let full_at = *bucket.full_at.lock();
        assert!(take(5).is_none());
        assert!(quotas.paid(&a, QuotaKind::Produce).now_or_never().is_none());
        assert_eq!(*bucket.full_at.lock(), full_at);
        // Neither another client nor the other kind of traffic, which is unlimited, has to wait.
        assert!(quotas.take(&client("b"), QuotaKind::Produce, 1_000_000).now_or_never().is_some());
        assert!(quotas.take(&a, QuotaKind::Fetch, usize::MAX).now_or_never().is_some());
    }

    #[tokio::test]
    async fn only_who_waited_is_counted_as_throttled() {
        let (quotas, a, b) = (produce_rate(100_000), client("a"), client("b"));
        quotas.take(&b, QuotaKind::Produce, 100_000).await;
        // Each request takes more than the burst, so that the next one waits, unless the machine was stalled.
        for _ in 0..1_000 {
            if quotas.throttled().is_empty() {
                quotas.take(&a, QuotaKind::Produce, 101_000).await;
            }
        }
        let throttled = quotas.throttled();
        assert_eq!((throttled.len(), &throttled[0].client), (1, &a));
    }
}
