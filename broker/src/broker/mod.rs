//! The broker's operations, which the APIs and the runtime call: topics, writing, reading, groups.

pub(crate) mod caller;
pub mod check;
pub mod classic;
mod collector;
pub(crate) mod consumer;
pub mod fetch;
mod groups;
mod heartbeats;
pub(crate) mod in_flight;
pub mod operation;
pub mod position;
mod produce;
mod producers;
pub mod quota;
mod topics;
pub mod transactions;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use millstream_record::Limits;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use self::classic::GroupSettings;
use self::collector::BrokerCollector;
pub use self::groups::GroupOffset;
use self::in_flight::BytesInFlight;
pub use self::produce::Queued;
use self::quota::{QuotaSettings, Quotas};
use self::transactions::{TransactionSettings, Transactions};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::groups::Groups;
use crate::log::catalog_entries::{
    CLUSTER_ID, NEXT_PRODUCER_ID, catalog_number, load_group_members, load_group_settings, load_producer_epochs,
    load_topics,
};
use crate::log::cleaner::{Cleaner, CleanerOptions};
use crate::log::commit::Commit;
use crate::log::committer::Committer;
use crate::log::domain::Domain;
use crate::log::idle_clock::IdleClock;
use crate::log::producers::{ProducerEpochs, ProducerIds};
use crate::log::queue::{CommitQueue, Receipt};
use crate::log::readers::Readers;
use crate::log::sealer::sealer;
use crate::log::start::Restoring;
use crate::log::state::StateIndex;
use crate::log::topic::TopicUse;
use crate::log::topics::Topics;
use crate::metrics::BrokerMetrics;
use crate::name::TopicName;
use crate::store::panics::caught;
use crate::store::{CatalogChange, Store, StoreError, StoreOptions};

/// Default limit of the bytes that wait for the committer: half a second of a slow disk. Further writes wait.
const QUEUED_BYTES_MAX_DEFAULT: usize = 64 << 20;

/// Default maximum size of the journal in bytes. Reading this much takes an eighth of a second at a start.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Default time after which idle producers are forgotten: one day, as Kafka's `producer.id.expiration.ms`.
const PRODUCER_EXPIRY_MS_DEFAULT: u64 = 24 * 60 * 60 * 1_000;

/// Default time after which unused groups expire: a week, as Kafka's `offsets.retention.minutes`.
pub const OFFSETS_RETENTION_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The broker's settings, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Limits for record batches from outside.
    pub limits: Limits,
    /// Maximum number of bytes that wait for the committer.
    pub queued_bytes_max: usize,
    /// How much each client may produce and fetch. Unlimited by default.
    pub quotas: QuotaSettings,
    /// Maximum size of the journal in bytes, over all partitions. Under full load one half is sealed while the other
    /// half fills. It may be exceeded by three commits. A start reads the whole journal. No topic's `retention_bytes`
    /// can be lower.
    pub journal_bytes_max: u64,
    /// While the disk has fewer bytes free than this, appends are refused. The reserve is for sealing existing data.
    /// Reads continue, and writes are accepted again when there is enough room. `None` stands for the maximum size of
    /// the journal.
    pub disk_reserve_bytes: Option<u64>,
    /// How long a producer must have appended nothing, while the server ran, until a partition forgets it.
    pub producer_expiry_ms: u64,
    /// How long a group without members must have committed nothing until it is deleted with its offsets. Offsets of
    /// this age in topics that no member of their group reads are deleted too.
    pub offsets_retention_ms: u64,
    /// The bounds of groups.
    pub groups: GroupSettings,
    /// The bounds of transactions.
    pub transactions: TransactionSettings,
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
            groups: GroupSettings::default(),
            transactions: TransactionSettings::default(),
        }
    }
}

/// An open data directory with everything that works on it. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

/// A handle that does not keep the broker open.
#[derive(Clone)]
pub struct WeakBroker(Weak<Inner>);

impl std::fmt::Debug for WeakBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakBroker")
    }
}

impl WeakBroker {
    /// Returns the broker if it is still open.
    pub fn upgrade(&self) -> Option<Broker> {
        self.0.upgrade().map(Broker)
    }
}

struct Inner {
    settings: BrokerSettings,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    topics: Arc<RwLock<Topics>>,
    /// Topics that must not be deleted, by the pipeline that uses them.
    in_use: RwLock<BTreeMap<String, BTreeMap<TopicName, TopicUse>>>,
    /// Counts alterations of topics, so that caches of topic data are refreshed.
    altered: watch::Sender<u64>,
    /// Held while topics are created, altered or deleted, because the catalog and `topics` change together.
    changing_topics: tokio::sync::Mutex<()>,
    producer_ids: ProducerIds,
    cluster_id: tokio::sync::OnceCell<Uuid>,
    groups: Arc<Groups>,
    transactions: Transactions,
    /// Held while settings of groups change.
    changing_groups: tokio::sync::Mutex<()>,
    domain: Arc<Domain>,
    state: Arc<StateIndex>,
    readers: Readers,
    metrics: BrokerMetrics,
    quotas: Quotas,
    queue: RwLock<Option<CommitQueue>>,
    queued: BytesInFlight,
    /// Limits concurrent checks of compressed batches to one per core.
    checks: Arc<Semaphore>,
    failure: watch::Receiver<Option<Arc<StoreError>>>,
    stopping: watch::Sender<bool>,
    /// The threads of the store and the log.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Broker {
    /// Opens or creates a data directory, and rebuilds memory from its journal. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is in use, has another format, is corrupt, or cannot be read.
    pub fn open(
        path: &Path,
        settings: BrokerSettings,
        options: StoreOptions,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Self, StoreError> {
        // redb may panic on a damaged database. The panic is returned as an error.
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
        let (store, extents) = Store::open(path, options, settings.journal_bytes_max, disk_reserve_bytes)?;
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
        load_group_settings(&store, &groups)?;
        load_group_members(&store, &groups)?;
        let idle = IdleClock::new(clock.clone());
        let producer_ids = ProducerIds::new(catalog_number(&store, NEXT_PRODUCER_ID)?.unwrap_or(0));
        let transactions = Transactions::load(&store, &topics, &groups, now_ms)?;
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
            cluster_id: tokio::sync::OnceCell::new(),
            groups,
            transactions,
            changing_groups: tokio::sync::Mutex::default(),
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

    /// Returns a handle that does not keep the broker open.
    pub fn downgrade(&self) -> WeakBroker {
        WeakBroker(Arc::downgrade(&self.0))
    }

    /// Returns the settings that the broker was opened with.
    pub fn settings(&self) -> &BrokerSettings {
        &self.0.settings
    }

    /// Returns the clock that the broker was opened with.
    pub fn clock(&self) -> &dyn Clock {
        self.0.clock.as_ref()
    }

    /// Returns the data directory.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Returns the UUID of the data directory. It is made when it is first asked for.
    ///
    /// # Errors
    /// [`BrokerError::Storage`], [`BrokerError::Unreadable`].
    pub async fn cluster_id(&self) -> Result<Uuid, BrokerError> {
        let id = self.0.cluster_id.get_or_try_init(|| async {
            if let Some(stored) = self.0.store.catalog_get(CLUSTER_ID)? {
                let parsed = std::str::from_utf8(&stored).ok().and_then(|text| Uuid::parse_str(text).ok());
                return parsed.ok_or_else(|| {
                    let reason = format!("{stored:?} is not a UUID");
                    StoreError::Corrupt { what: format!("catalog entry {CLUSTER_ID:?}"), reason }.into()
                });
            }
            let id = Uuid::new_v4();
            let catalog = vec![CatalogChange::put(CLUSTER_ID, id.to_string().into_bytes())];
            self.commit(Commit { catalog, ..Commit::default() }).await?.await?;
            Ok(id)
        });
        id.await.copied()
    }

    /// Returns the threads that read records which are not in memory.
    pub(crate) fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Returns the groups.
    pub fn groups(&self) -> &Groups {
        &self.0.groups
    }

    /// Returns the committed state of all stages.
    pub fn state(&self) -> &StateIndex {
        &self.0.state
    }

    /// Returns the broker's metrics.
    pub fn metrics(&self) -> &BrokerMetrics {
        &self.0.metrics
    }

    /// Returns the clients' quotas.
    pub fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    /// Becomes `Some` when the store fails. The process must then exit and report the error.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<StoreError>>> {
        self.0.failure.clone()
    }

    /// Waits until the broker stops. Long-running calls end then.
    pub async fn stopped(&self) {
        // This cannot fail, because the sender lives as long as the broker.
        let _ = self.0.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Returns whether the broker is stopping.
    pub fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Ends long polls and streams. Queued writes are still committed and answered.
    pub fn begin_stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Commits queued writes, refuses later ones, and waits for the end of the store's threads. Blocks.
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

    /// Queues a commit as soon as the queue has room for it.
    ///
    /// # Errors
    /// [`BrokerError::ShuttingDown`]. All other errors are returned by the [`Receipt`].
    pub async fn commit(&self, commit: Commit) -> Result<Receipt, BrokerError> {
        let permit = self.0.queued.take(commit.bytes()).await.ok_or(BrokerError::ShuttingDown)?;
        let queue = self.0.queue.read();
        let queue = queue.as_ref().ok_or(BrokerError::ShuttingDown)?;
        Ok(queue.push(commit, Some(permit)))
    }

    /// Commits one change of the catalog, and waits until it is on disk.
    async fn commit_entry(&self, entry: CatalogChange) -> Result<(), BrokerError> {
        self.commit(Commit { catalog: vec![entry], ..Commit::default() }).await?.await.map(drop)
    }

    /// Returns how many bytes of commits are queued or being written, in whole KiB.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.0.queued.taken()
    }
}
