//! The store's threads. If one of them fails, the store fails, reports the failure and lets no one wait forever. While
//! they work, they keep the journal within its bound.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millstream_broker::broker::check::check;
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError, Offset, TopicName};
use millstream_tests::held::Held;
use millstream_tests::hooked::{self, Call, is_thread};
use millstream_tests::instance::wait_until;
use millstream_tests::running::{JOURNAL_BYTES, Limit, Running, append, batch_of_one, journal_bytes, read_from};
use parking_lot::Mutex;
use tokio::task::JoinSet;

const VALUE_BYTES: usize = 20_000;

/// Maximum size in the journal of a commit of one record of [`VALUE_BYTES`], in bytes.
const RECORD_BYTES_MAX: u64 = VALUE_BYTES as u64 + 1_000;

const THREADS: [&str; 4] = ["committer", "sealer", "retention", "cleaner"];

/// Returns options with which retention, merging and compaction run continuously.
fn all_the_time(options: StoreOptions) -> StoreOptions {
    StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..options }
}

async fn append_one(broker: &Broker, topic: &Topic) -> Result<(), BrokerError> {
    append(broker, topic, 0, batch_of_one(0, "k", Some(&"v".repeat(VALUE_BYTES)))).await
}

/// Appends concurrently. Every append must be answered. Returns the number of successful appends.
async fn append_many(running: &Running, topic: &Arc<Topic>, count: usize) -> usize {
    let mut answers = JoinSet::new();
    for _ in 0..count {
        let (broker, topic) = (running.broker.clone(), topic.clone());
        answers.spawn(async move { append_one(&broker, &topic).await });
    }
    let answers = tokio::time::timeout(Duration::from_secs(120), answers.join_all()).await;
    let answers = answers.expect("all requests are answered within two minutes");
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert!(matches!(refused, BrokerError::Storage(_)), "{refused}");
    }
    answers.iter().filter(|answer| answer.is_ok()).count()
}

/// Asserts that the store reports its failure, and accepts no further writes.
async fn assert_failed(running: &Running, topic: &Topic, words: &str) {
    let failure = running.broker.failure();
    wait_until("the store reports its failure", || failure.borrow().is_some()).await;
    let said = failure.borrow().as_ref().unwrap().to_string();
    assert!(said.contains(words), "{said} does not contain {words:?}");
    assert!(running.broker.store().has_failed());
    let refused = append_one(&running.broker, topic).await.unwrap_err();
    assert!(matches!(&refused, BrokerError::Storage(error) if error.to_string().contains(words)), "{refused}");
    let name = TopicName::new("new").unwrap();
    let refused = running.broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap_err();
    // If redb itself was interrupted, the catalog cannot be read any more.
    assert!(matches!(refused, BrokerError::Storage(_) | BrokerError::Unreadable(_)), "{refused}");
}

/// Asserts that at least the acknowledged records exist, and that the data directory can still be used.
async fn assert_goes_on(data: &Path, acked: usize) {
    let report = check(data, false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let running = Running::open(data, 0);
    let topic = running.broker.topic("t").unwrap();
    let records = read_from(&running.broker, &topic.partitions()[0], Offset::ZERO).await;
    assert!(records.len() >= acked, "{acked} records were acknowledged, but only {} exist", records.len());
    append_one(&running.broker, &topic).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_of_the_store_that_panics_fails_the_store_at_once() {
    for thread in THREADS {
        let data = tempfile::tempdir().unwrap();
        let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, all_the_time(StoreOptions::default()));
        let topic = running.topic("t", 1, TopicSettings::default()).await;
        running.clock.on_asked(move |asking| assert!(asking != thread, "broken on purpose: {thread}"));
        let mut acked = 0;
        match thread {
            "committer" => assert_eq!(append_many(&running, &topic, 20).await, 0, "all appends must fail"),
            // The journal reaches one part, and then nothing is written, so the thread itself has to notify the
            // committer.
            "sealer" => {
                while journal_bytes(&running.broker, |_| true) < JOURNAL_BYTES / 4 {
                    append_one(&running.broker, &topic).await.unwrap();
                    acked += 1;
                }
            }
            // Nothing is written at all.
            _ => {}
        }
        assert_failed(&running, &topic, "panicked").await;
        running.stop().await;
        assert_goes_on(data.path(), acked).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_call_of_the_disk_fails_the_store() {
    for thread in ["committer", "sealer"] {
        for call in [Call::Write, Call::Sync] {
            let data = tempfile::tempdir().unwrap();
            let breaks = Arc::new(AtomicBool::new(false));
            let armed = breaks.clone();
            let options = hooked::options(move |_, made| {
                assert!(!(made == call && is_thread(thread) && armed.load(Ordering::SeqCst)), "broken on purpose");
                Ok(())
            });
            let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, all_the_time(options));
            let topic = running.topic("t", 1, TopicSettings::default()).await;
            for _ in 0..2 {
                append_one(&running.broker, &topic).await.unwrap();
            }
            breaks.store(true, Ordering::SeqCst);
            let acked = append_many(&running, &topic, 50).await;
            assert_failed(&running, &topic, "panicked").await;
            running.stop().await;
            assert_goes_on(data.path(), 2 + acked).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_wait_for_the_sealer_are_answered_when_it_panics() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::open(data.path(), 0);
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    let (reached, panics) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (reaches, until) = (reached.clone(), panics.clone());
    running.clock.on_asked(move |asking| {
        if asking == "sealer" {
            reaches.store(true, Ordering::SeqCst);
            while !until.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            panic!("broken on purpose");
        }
    });
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        let (broker, topic) = (running.broker.clone(), topic.clone());
        writers.spawn(async move {
            let mut acked = 0;
            loop {
                match append_one(&broker, &topic).await {
                    Ok(()) => acked += 1,
                    Err(refused) => return (acked, refused),
                }
            }
        });
    }
    wait_until("the sealer begins to seal", || reached.load(Ordering::SeqCst)).await;
    // From here on at most one more commit is accepted.
    wait_until("the journal is full", || journal_bytes(&running.broker, |_| true) > JOURNAL_BYTES * 3 / 4).await;
    panics.store(true, Ordering::SeqCst);
    let writers = tokio::time::timeout(Duration::from_secs(120), writers.join_all()).await;
    let writers = writers.expect("all requests are answered within two minutes");
    for (_, refused) in &writers {
        assert!(matches!(refused, BrokerError::Storage(_)), "{refused}");
    }
    let acked = writers.iter().map(|(acked, _)| acked).sum();
    assert_failed(&running, &topic, "the sealer panicked").await;
    running.stop().await;
    assert_goes_on(data.path(), acked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_after_the_sealer_failed() {
    let data = tempfile::tempdir().unwrap();
    let writes = Arc::new(AtomicU64::new(0));
    let (breaks, written) = (Arc::new(AtomicBool::new(false)), writes.clone());
    let armed = breaks.clone();
    let options = hooked::options(move |path, call| {
        if call == Call::Write && is_thread("committer") {
            written.fetch_add(1, Ordering::SeqCst);
        }
        let is_segment = path.extension().is_some_and(|extension| extension == "segment");
        if is_segment && call == Call::Write && armed.load(Ordering::SeqCst) {
            return Err(io::Error::other("a bad sector"));
        }
        Ok(())
    });
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options);
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    breaks.store(true, Ordering::SeqCst);
    let mut acked = 0;
    while journal_bytes(&running.broker, |_| true) < JOURNAL_BYTES / 4 {
        append_one(&running.broker, &topic).await.unwrap();
        acked += 1;
    }
    assert_failed(&running, &topic, "a bad sector").await;
    let before = writes.load(Ordering::SeqCst);
    assert_eq!(append_many(&running, &topic, 10).await, 0);
    assert_eq!(writes.load(Ordering::SeqCst), before, "the committer must not write after the failure");
    assert_eq!(topic.partitions()[0].end().get(), acked, "no unacknowledged record may be visible");
    // The acknowledged records can be read.
    assert_eq!(read_from(&running.broker, &topic.partitions()[0], Offset::ZERO).await.len() as i64, acked);
    running.stop().await;
    assert_goes_on(data.path(), acked as usize).await;
}

// ---- the journal's bound

/// Returns options for a disk on which each sync of the sealer takes this long.
fn slow_sealer(time: Duration) -> StoreOptions {
    hooked::options(move |_, call| {
        if call == Call::Sync && is_thread("sealer") {
            std::thread::sleep(time);
        }
        Ok(())
    })
}

/// Appends records as fast as possible, with several writers. Returns the maximum size of the journal after an answer.
async fn fill(running: &Running, topic: &Arc<Topic>, writers: usize, records: usize) -> u64 {
    let most = Arc::new(AtomicU64::new(0));
    let mut all = JoinSet::new();
    for _ in 0..writers {
        let (broker, topic, most) = (running.broker.clone(), topic.clone(), most.clone());
        all.spawn(async move {
            for _ in 0..records / writers {
                append_one(&broker, &topic).await.unwrap();
                most.fetch_max(journal_bytes(&broker, |_| true), Ordering::SeqCst);
            }
        });
    }
    let filled = tokio::time::timeout(Duration::from_secs(300), all.join_all()).await;
    filled.expect("the writers end within five minutes");
    most.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_never_keeps_more_than_its_bound_however_slow_sealing_is() {
    /// Maximum size of the requests that the committer gathers for one commit, in bytes.
    const COMMIT_BYTES_MAX: u64 = 1 << 20;
    // A few writers, and so many that several commits wait in the queue.
    for (writers, journal, records) in [(4, 1 << 20, 800), (400, 4 << 20, 2_000)] {
        let data = tempfile::tempdir().unwrap();
        let options = all_the_time(slow_sealer(Duration::from_millis(150)));
        let running = Running::open_with(data.path(), 0, journal, options);
        let topic = running.topic("t", 1, TopicSettings::default()).await;
        let most = fill(&running, &topic, writers, records).await;
        // Three more commits are possible: the one that reaches the bound, and one for each of the sealer's two
        // commits.
        let commit_bytes = (writers as u64 * RECORD_BYTES_MAX).min(COMMIT_BYTES_MAX + RECORD_BYTES_MAX);
        assert!(
            most <= journal + 3 * commit_bytes,
            "{writers} writers: the journal has {most} bytes, its limit is {journal}"
        );
        assert!(most > journal / 2, "{writers} writers never made the journal half full: {most} bytes");
        assert!(records as u64 * VALUE_BYTES as u64 > 9 * journal);
        // The file also contains values that are sealed but not yet removed, and free pages.
        let file_bytes = running.broker.store().size().journal_bytes;
        assert!(file_bytes < 8 * journal, "{writers} writers: the journal's file has {file_bytes} bytes");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_full_at_a_kill_stays_within_its_bound() {
    let data = tempfile::tempdir().unwrap();
    // The sealer does not complete before the kill.
    let held = Held::of_thread("sealer");
    held.hold();
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, held.options());
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    let mut records = 0;
    while journal_bytes(&running.broker, |_| true) < JOURNAL_BYTES * 3 / 4 - RECORD_BYTES_MAX {
        append_one(&running.broker, &topic).await.unwrap();
        records += 1;
        if journal_bytes(&running.broker, |_| true) > JOURNAL_BYTES / 4 {
            wait_until("the sealer has copied its part", || held.is_waited_for()).await;
        }
    }
    let copy = tempfile::tempdir().unwrap();
    super::check::copy_folder(data.path(), copy.path());
    held.release();
    running.stop().await;

    // All of that forms a single part now.
    let running = Running::open_with(copy.path(), 0, JOURNAL_BYTES, slow_sealer(Duration::from_millis(200)));
    let topic = running.broker.topic("t").unwrap();
    let before = journal_bytes(&running.broker, |_| true);
    assert!(before > JOURNAL_BYTES / 2, "the journal only has {before} bytes after the start");
    let most = fill(&running, &topic, 1, 20).await;
    assert!(most <= JOURNAL_BYTES + 2 * RECORD_BYTES_MAX, "the journal has {most} bytes, its limit is {JOURNAL_BYTES}");
    let read = read_from(&running.broker, &topic.partitions()[0], Offset::ZERO).await;
    assert_eq!(read.len(), records + 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_again_and_again_keeps_its_journal_within_its_bound() {
    let mut data = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    for _ in 0..6 {
        // The sealer does not complete before the kill.
        let held = Held::of_thread("sealer");
        held.hold();
        let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, held.options());
        let topic = match running.broker.topic("t") {
            Ok(topic) => topic,
            Err(_) => running.topic("t", 1, TopicSettings::default()).await,
        };
        // Appends until the journal accepts no more. If a commit was merely slow, the journal is shorter, and the loop
        // continues.
        let limit = Limit::new("the journal is half full");
        while tokio::time::timeout(Duration::from_millis(500), append_one(&running.broker, &topic)).await.is_ok()
            || journal_bytes(&running.broker, |_| true) < JOURNAL_BYTES / 2
        {
            limit.check();
        }
        let copy = tempfile::tempdir().unwrap();
        super::check::copy_folder(data.path(), copy.path());
        held.release();
        running.stop().await;
        let found = Running::open_with(copy.path(), 0, 100 * JOURNAL_BYTES, StoreOptions::default());
        sizes.push(journal_bytes(&found.broker, |_| true));
        found.stop().await;
        data = copy;
    }
    let bound = JOURNAL_BYTES + 2 * RECORD_BYTES_MAX;
    assert!(sizes.iter().all(|bytes| *bytes <= bound), "the sizes of the journal are {sizes:?}, the limit is {bound}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_seals_a_journal_that_is_long_enough_before_anybody_writes() {
    let data = tempfile::tempdir().unwrap();
    let held = Held::of_thread("sealer");
    held.hold();
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, held.options());
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    while journal_bytes(&running.broker, |_| true) < JOURNAL_BYTES / 4 {
        append_one(&running.broker, &topic).await.unwrap();
    }
    wait_until("the sealer has copied its part", || held.is_waited_for()).await;
    let copy = tempfile::tempdir().unwrap();
    super::check::copy_folder(data.path(), copy.path());
    held.release();
    running.stop().await;
    let running = Running::open(copy.path(), 0);
    wait_until("the part of the journal is sealed", || journal_bytes(&running.broker, |_| true) == 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_segments_are_not_removed_by_the_committer_and_their_numbers_are_not_used_again() {
    let data = tempfile::tempdir().unwrap();
    let removed: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let told = removed.clone();
    let file_system = hooked::telling_of_removals(move |path| {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if !file.ends_with(".segment") {
            return;
        }
        told.lock().push((file, std::thread::current().name().unwrap_or_default().to_owned()));
    });
    let options = || all_the_time(StoreOptions { file_system: Some(file_system.clone()), ..StoreOptions::default() });
    let segments = || {
        let names = std::fs::read_dir(data.path().join("segments")).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options());
    let topic = running.topic("t", 1, TopicSettings::default()).await;
    let limit = Limit::new("part of the journal is sealed");
    while segments().is_empty() {
        limit.check();
        append_one(&running.broker, &topic).await.unwrap();
    }
    running.broker.delete_topic(topic.name()).await.unwrap();
    wait_until("the deleted topic's segments are gone", || segments().is_empty()).await;
    running.stop().await;
    let removed = removed.lock().clone();
    assert!(!removed.is_empty());
    assert!(removed.iter().all(|(_, thread)| thread != "committer"), "{removed:?}");

    // The journal contains no more records of the deleted topic, so new segments belong to another topic.
    let running = Running::open_with(data.path(), 0, JOURNAL_BYTES, options());
    let topic = running.topic("u", 1, TopicSettings::default()).await;
    let limit = Limit::new("another segment is written");
    while topic.partitions()[0].size().segments == 0 {
        limit.check();
        append_one(&running.broker, &topic).await.unwrap();
    }
    let largest = removed.iter().map(|(file, _)| file.clone()).max().unwrap();
    let new = segments();
    assert!(
        !new.is_empty() && new.iter().all(|file| *file > largest),
        "the numbers of new segments {new:?} must be above {largest}"
    );
    running.stop().await;
}
