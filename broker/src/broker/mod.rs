//! What the edges and the runtime call: topics, writing, reading, groups.

pub(crate) mod caller;
pub mod check;
mod collector;
pub(crate) mod consumer;
pub mod fetch;
mod groups;
pub(crate) mod in_flight;
pub mod operation;
pub mod position;
mod produce;
mod producers;
pub mod quota;
mod topics;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use millstream_record::Limits;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};

use self::collector::BrokerCollector;
pub use self::groups::GroupOffset;
use self::in_flight::BytesInFlight;
pub use self::produce::Queued;
use self::quota::{QuotaSettings, Quotas};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::groups::Groups;
use crate::log::catalog::{NEXT_PRODUCER_ID, catalog_number, load_producer_epochs, load_topics};
use crate::log::cleaner::{Cleaner, CleanerOptions};
use crate::log::commit::Commit;
use crate::log::committer::Committer;
use crate::log::domain::Domain;
use crate::log::expiry::IdleClock;
use crate::log::producers::{ProducerEpochs, ProducerIds};
use crate::log::queue::{CommitQueue, Receipt};
use crate::log::readers::Readers;
use crate::log::sealer::sealer;
use crate::log::start::Restoring;
use crate::log::state::StateIndex;
use crate::log::topic::{Topic, TopicUse};
use crate::metrics::BrokerMetrics;
use crate::name::TopicName;
use crate::store::panics::caught;
use crate::store::{Store, StoreError, StoreOptions};

/// Bytes that may wait for the committer: half a second of a slow disk. A write beyond waits.
const QUEUED_BYTES_MAX_DEFAULT: usize = 64 << 20;

/// Bytes that the journal keeps: a quarter of a second to read at a start.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 128 << 20;

/// A day: Kafka's `producer.id.expiration.ms`.
const PRODUCER_EXPIRY_MS_DEFAULT: u64 = 24 * 60 * 60 * 1_000;

/// A week: Kafka's `offsets.retention.minutes`.
pub const OFFSETS_RETENTION_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The broker's settings, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Bounds for record batches from outside.
    pub limits: Limits,
    /// Bytes that may wait for the committer.
    pub queued_bytes_max: usize,
    /// What each client may produce and fetch. Default: all it can.
    pub quotas: QuotaSettings,
    /// Bytes that the journal keeps, of whatever partitions: under full load half is sealed while the other half
    /// fills. Three commits may come on top. A start reads it all, and no topic's `retention_bytes` can be less.
    pub journal_bytes_max: u64,
    /// Nothing is appended while the disk has room for fewer bytes; `None` for as many as the journal keeps. They
    /// are for sealing what is there; reading goes on, and when there is room again, so does writing.
    pub disk_reserve_bytes: Option<u64>,
    /// A partition forgets an idempotent producer that appended nothing for this long while the server ran.
    pub producer_expiry_ms: u64,
    /// A group that has no members and commits nothing for this long is deleted with its offsets. So are offsets of this
    /// age in topics that no member of their group reads.
    pub offsets_retention_ms: u64,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            queued_bytes_max: QUEUED_BYTES_MAX_DEFAULT,
            quotas: QuotaSettings::default(),
            journal_bytes_max: JOURNAL_BYTES_MAX_DEFAULT,
            disk_reserve_bytes: None,
            producer_expiry_ms: PRODUCER_EXPIRY_MS_DEFAULT,
            offsets_retention_ms: OFFSETS_RETENTION_MS_DEFAULT,
        }
    }
}

/// A data directory at work. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

/// A broker that this does not keep open.
#[derive(Clone)]
pub struct WeakBroker(Weak<Inner>);

impl std::fmt::Debug for WeakBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakBroker")
    }
}

impl WeakBroker {
    /// The broker, if it is still open.
    pub fn upgrade(&self) -> Option<Broker> {
        self.0.upgrade().map(Broker)
    }
}

struct Inner {
    settings: BrokerSettings,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    topics: Arc<RwLock<BTreeMap<TopicName, Arc<Topic>>>>,
    /// Topics that must not be deleted, and the pipelines that use them.
    in_use: RwLock<BTreeMap<String, BTreeMap<TopicName, TopicUse>>>,
    /// Counts alterations: who keeps what it knows of topics looks again.
    altered: watch::Sender<u64>,
    /// Held while topics are made, altered or deleted: the catalog and `topics` change together.
    changing_topics: tokio::sync::Mutex<()>,
    producer_ids: ProducerIds,
    groups: Arc<Groups>,
    domain: Arc<Domain>,
    state: Arc<StateIndex>,
    readers: Readers,
    metrics: BrokerMetrics,
    quotas: Quotas,
    queue: RwLock<Option<CommitQueue>>,
    queued: BytesInFlight,
    /// Checks of compressed batches at a time: one a core.
    checks: Arc<Semaphore>,
    failure: watch::Receiver<Option<Arc<StoreError>>>,
    stopping: watch::Sender<bool>,
    /// The store's threads.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Broker {
    /// Opens or makes a data directory, and rebuilds memory from its journal. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] where the directory is in use, of another format, corrupt, or unreadable.
    pub fn open(
        path: &Path,
        settings: BrokerSettings,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Self, StoreError> {
        // A damaged database can make redb panic, which is no reason for us to.
        let opened = caught(|| Self::open_directory(path, settings, options, clock, registry));
        opened.unwrap_or_else(|reason| {
            let what = format!("the data directory {}", path.display());
            Err(StoreError::Corrupt { what, reason: format!("the database failed: {reason}") })
        })
    }

    fn open_directory(
        path: &Path,
        settings: BrokerSettings,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Self, StoreError> {
        let disk_reserve_bytes = settings.disk_reserve_bytes.unwrap_or(settings.journal_bytes_max);
        let cleaner_options = CleanerOptions::new(&options, settings.producer_expiry_ms, settings.offsets_retention_ms);
        let (store, extents) = Store::open(path, options, disk_reserve_bytes)?;
        let store = Arc::new(store);
        let topics = load_topics(&store)?;
        let groups = Arc::new(Groups::default());
        let state = Arc::new(StateIndex::new(store.tables().clone()));
        let (sealer_handle, sealer) = sealer(settings.journal_bytes_max);
        let now_ms = clock.now_ms();
        let restoring = Restoring {
            store: &store,
            topics: &topics,
            groups: &groups,
            state: &state,
            now_ms,
            offsets_retention_ms: settings.offsets_retention_ms,
        };
        let journal = restoring.run(extents, &sealer_handle)?;
        let idle = IdleClock::new(clock.clone());
        let producer_ids = ProducerIds::new(catalog_number(&store, NEXT_PRODUCER_ID)?.unwrap_or(0));
        let topics = Arc::new(RwLock::new(topics));
        let producer_epochs = ProducerEpochs::new(load_producer_epochs(&store)?, idle.now_ms());
        let domain = Arc::new(Domain {
            topics: topics.clone(),
            groups: groups.clone(),
            clock: clock.clone(),
            idle,
            producer_epochs,
        });
        let metrics = BrokerMetrics::register(registry);
        let readers = Readers::new()?;
        let (failed, failure) = watch::channel(None);
        let (queue, committer) = Committer::start(
            store.clone(),
            state.clone(),
            domain.clone(),
            metrics.clone(),
            journal,
            sealer_handle,
            failed,
        )?;
        let sealer = sealer.start(store.clone(), domain.clone(), queue.downgrade())?;
        let cleaner = Cleaner::new(store.clone(), domain.clone(), queue.downgrade(), settings.limits, cleaner_options);
        let [retention, cleaner] = cleaner.start()?;
        let broker = Self(Arc::new(Inner {
            queued: BytesInFlight::up_to(settings.queued_bytes_max),
            checks: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
            quotas: Quotas::new(settings.quotas.clone()),
            settings,
            clock,
            store,
            topics,
            in_use: RwLock::default(),
            altered: watch::Sender::new(0),
            changing_topics: tokio::sync::Mutex::default(),
            producer_ids,
            groups,
            domain,
            state,
            readers,
            metrics,
            queue: RwLock::new(Some(queue)),
            failure,
            stopping: watch::Sender::new(false),
            threads: Mutex::new(vec![committer, sealer, retention, cleaner]),
        }));
        registry.register_collector(Box::new(BrokerCollector(broker.downgrade())));
        Ok(broker)
    }

    /// A handle that does not keep the broker open.
    pub fn downgrade(&self) -> WeakBroker {
        WeakBroker(Arc::downgrade(&self.0))
    }

    /// The settings it was opened with.
    pub fn settings(&self) -> &BrokerSettings {
        &self.0.settings
    }

    /// The clock it was given.
    pub fn clock(&self) -> &dyn Clock {
        self.0.clock.as_ref()
    }

    /// The data directory.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Who reads what is not in memory.
    pub(crate) fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Every group.
    pub fn groups(&self) -> &Groups {
        &self.0.groups
    }

    /// Every stage's committed state.
    pub fn state(&self) -> &StateIndex {
        &self.0.state
    }

    /// The broker's counters.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.0.metrics
    }

    /// Who may read and write how fast.
    pub fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    /// Becomes `Some` when the store fails: the process must end with that reason.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<StoreError>>> {
        self.0.failure.clone()
    }

    /// Returns when the broker stops: long calls end then.
    pub async fn stopped(&self) {
        // The sender lives as long as the broker.
        let _ = self.0.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Whether a stop is under way.
    pub fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Ends long polls and streams. Writes that are queued are still committed and answered.
    pub fn begin_stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Commits what is queued, refuses what comes after, and waits for the end of the store's threads.
    /// Blocks.
    pub fn stop(&self) {
        self.begin_stop();
        drop(self.0.queue.write().take());
        for thread in std::mem::take(&mut *self.0.threads.lock()) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!("the thread {name:?} panicked");
            }
        }
    }

    /// Queues a commit, once there is room for it in the queue.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`]; the [`Receipt`] has everything else.
    pub async fn commit(&self, commit: Commit) -> Result<Receipt, BrokerError> {
        let permit = self.0.queued.take(commit.bytes()).await.ok_or(BrokerError::ShuttingDown)?;
        let queue = self.0.queue.read();
        let queue = queue.as_ref().ok_or(BrokerError::ShuttingDown)?;
        Ok(queue.push(commit, Some(permit)))
    }

    /// Bytes of commits that wait to be on disk, in whole KiB.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.0.queued.taken()
    }
}
