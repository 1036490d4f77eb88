//! A broker on a disk that breaks: whatever was acknowledged is there afterwards, and of every commit all
//! or nothing.
//!
//! A case is a seed: it decides what is written, what breaks and what a power loss leaves. The threads of
//! the store go their own ways, so the same seed may end elsewhere. `MILLSTREAM_TEST_CASES` multiplies the
//! number of cases, `MILLSTREAM_TEST_SEED` runs one alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_api::ERROR_TRAILER;
use millstream_broker::grpc::status::to_status;
use millstream_broker::store::{Commit, StoreOptions, check};
use millstream_broker::{Broker, BrokerError, Offset};
use millstream_runtime::{Runtime, RuntimeSettings};
use millstream_tests::faults::{Call, Disk, Fault, folder};
use millstream_tests::instance::{Instance, wait_until};
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::workload::{Workload, block_on, for_seeds, open_with, open_with_reserve};

// ---- crashes

fn fault(random: &mut StdRng) -> Option<Fault> {
    // Some strike while the store opens.
    let max = [30, 100, 600][random.random_range(0..3)];
    let number = random.random_range(1..max);
    let call = [Call::Write, Call::SetLen, Call::Sync][random.random_range(0..3)];
    match random.random_range(0..10) {
        0 => None,
        1..3 => Some(Fault::Fail { call, number: if call == Call::Write { number } else { number.div_ceil(6) } }),
        3 => Some(Fault::Tear { number }),
        _ => Some(Fault::PowerOff { number }),
    }
}

/// One data directory through several faults, some of them while it is opened.
async fn survives(seed: u64, mut workload: Workload, options: impl Fn(StoreOptions) -> StoreOptions) -> Workload {
    let mut random = StdRng::seed_from_u64(seed);
    let data = folder();
    for _ in 0..random.random_range(1..6) {
        let fault = fault(&mut random);
        let mut disk = Disk::new(fault);
        if random.random_bool(0.2) {
            disk = disk.with_delays(random.random());
        }
        match open_with(data.path(), options(disk.options())) {
            Err(error) => assert!(disk.struck(), "it does not open: {error}"),
            Ok(broker) => {
                // Reading meets no fault, unless there is nothing to read.
                workload.check(&broker).await;
                let steps = random.random_range(1..60);
                let ran = workload.run(&broker, &mut random, steps).await;
                if ran.is_ok() {
                    // Beside the sealer.
                    workload.check(&broker).await;
                }
                if let Err(error) = ran {
                    assert!(matches!(error, BrokerError::Storage(_)), "{fault:?}: {error}");
                    assert!(disk.struck(), "{fault:?}: a healthy disk is refused: {error}");
                    check_refuses(&broker).await;
                }
                broker.stop();
            }
        }
        match fault {
            Some(Fault::PowerOff { .. }) => disk.lose_power(random.random()),
            // A power loss may follow later.
            _ if random.random_bool(0.5) => disk.lose_power(random.random()),
            _ => disk.settle(),
        }
    }
    let broker = open_with(data.path(), options(StoreOptions::default())).unwrap();
    workload.check(&broker).await;
    workload.run(&broker, &mut random, 5).await.unwrap();
    workload.check(&broker).await;
    broker.stop();
    drop(broker);
    let report = check(data.path(), false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    workload
}

/// A few keys a pass.
fn always_cleaning(options: StoreOptions) -> StoreOptions {
    StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), compaction_keys_max: Some(6), ..options }
}

/// What broke takes nothing more, and says so.
async fn check_refuses(broker: &Broker) {
    assert!(broker.store().has_failed());
    assert!(broker.failure().borrow().is_some(), "the server is told to end");
    let refused = broker.commit(Commit::default()).await.unwrap().await;
    assert!(matches!(refused, Err(BrokerError::Storage(_))), "{refused:?}");
}

#[test]
fn what_was_acknowledged_survives_every_fault_and_commits_are_whole() {
    for_seeds(300, |seed| drop(block_on(survives(seed, Workload::default(), |options| options))));
}

#[test]
fn what_is_left_by_retention_compaction_and_merging_survives_every_fault() {
    let cleaned = [const { AtomicU64::new(0) }; 2];
    for_seeds(300, |seed| {
        let workload = block_on(survives(seed, Workload::cleaned(), always_cleaning));
        for (all, count) in cleaned.iter().zip(workload.cleaned) {
            all.fetch_add(u64::from(count > 0), Ordering::Relaxed);
        }
    });
    if std::env::var("MILLSTREAM_TEST_SEED").is_err() {
        let [compacted, retained] = cleaned.map(AtomicU64::into_inner);
        assert!(compacted > 50 && retained > 50, "{compacted} of the seeds were compacted, {retained} retained");
    }
}

// ---- full disks

/// What a store whose journal has 40 KB needs to put in order what it holds, redb's copies of pages included.
const RESERVE_BYTES: u64 = 1 << 20;

/// Every second one with retention, compaction and merging all the time.
fn workload_of(seed: u64, disk: &Disk) -> (Workload, StoreOptions) {
    match seed % 2 {
        0 => (Workload::default(), disk.options()),
        _ => (Workload::cleaned(), always_cleaning(disk.options())),
    }
}

/// With room again it goes on, for so many steps; and so it does when it is opened anew.
async fn check_goes_on(
    broker: Broker,
    data: &Path,
    disk: Disk,
    workload: &mut Workload,
    random: &mut StdRng,
    steps: usize,
) {
    workload.run(&broker, random, steps).await.unwrap();
    workload.check(&broker).await;
    broker.stop();
    drop(broker);
    disk.settle();
    check_after_reopening(data, workload, random).await;
}

/// A healthy disk again, larger than before.
async fn check_after_reopening(data: &Path, workload: &mut Workload, random: &mut StdRng) {
    let broker = open_with(data, StoreOptions::default()).unwrap();
    workload.check(&broker).await;
    workload.run(&broker, random, 5).await.unwrap();
    workload.check(&broker).await;
    broker.stop();
}

#[test]
fn a_disk_that_runs_full_costs_nothing_that_was_acknowledged() {
    for_seeds(60, |seed| {
        block_on(async {
            let mut random = StdRng::seed_from_u64(seed);
            let (data, disk) = (folder(), Disk::default());
            let (mut workload, options) = workload_of(seed, &disk);
            let broker = open_with_reserve(data.path(), options, 0);
            let steps = random.random_range(0..30);
            workload.run(&broker, &mut random, steps).await.unwrap();
            disk.set_room(disk.used_bytes() + random.random_range(0..300_000));
            let error = workload.run_until_refused(&broker, &mut random).await;
            match &error {
                BrokerError::Storage(error) => assert!(error.is_disk_full(), "{error}"),
                // The sealer found it full first.
                BrokerError::DiskFull { .. } => {}
                _ => panic!("{error}"),
            }
            // Reads go on.
            workload.check_acked(&broker).await;
            broker.stop();
            drop(broker);
            if random.random_bool(0.5) {
                disk.lose_power(seed)
            } else {
                disk.settle()
            }
            check_after_reopening(data.path(), &mut workload, &mut random).await;
        });
    });
}

#[test]
fn with_a_reserve_a_full_disk_refuses_writes_until_there_is_room_and_nothing_fails() {
    for_seeds(30, |seed| {
        block_on(async {
            let mut random = StdRng::seed_from_u64(seed);
            let (data, disk) = (folder(), Disk::default());
            let (mut workload, options) = workload_of(seed, &disk);
            let broker = open_with_reserve(data.path(), options, RESERVE_BYTES);
            for _ in 0..3 {
                let room = disk.used_bytes() + RESERVE_BYTES + random.random_range(0..400_000);
                disk.set_room(room);
                let error = workload.run_until_refused(&broker, &mut random).await;
                let BrokerError::DiskFull { free_bytes, reserve_bytes, .. } = error else { panic!("{error}") };
                assert!(free_bytes < reserve_bytes && reserve_bytes == RESERVE_BYTES);
                // Nothing is broken: what is there is read, and what takes no room is taken.
                workload.check(&broker).await;
                assert!(!broker.store().has_failed());
                broker.commit(Commit::default()).await.unwrap().await.unwrap();
            }
            disk.set_room(u64::MAX);
            check_goes_on(broker, data.path(), disk, &mut workload, &mut random, 20).await;
        });
    });
}

#[test]
fn sealing_waits_for_room_and_goes_on_without_a_restart() {
    block_on(async {
        let mut random = StdRng::seed_from_u64(1);
        let (data, disk) = (folder(), Disk::default());
        let mut workload = Workload::default();
        let broker = open_with_reserve(data.path(), disk.options(), 0);
        let segments = data.path().join("segments");
        disk.set_full_folder(Some(segments.clone()));
        // The journal takes what it may keep, and no more.
        let error = workload.run_until_refused(&broker, &mut random).await;
        assert!(matches!(error, BrokerError::DiskFull { .. }), "{error}");
        workload.check(&broker).await;
        assert_eq!(broker.store().size().segments, 0);
        // What was tried leaves nothing: it would fill the disk further.
        let files = || std::fs::read_dir(&segments).unwrap().count();
        wait_until("an unfinished segment is removed", || files() == 0).await;
        disk.set_full_folder(None);
        wait_until("sealing goes on", || broker.store().size().segments > 0).await;
        assert!(!broker.store().has_failed());
        check_goes_on(broker, data.path(), disk, &mut workload, &mut random, 30).await;
    });
}

#[test]
fn a_full_disk_is_told_as_such_and_may_be_tried_again() {
    let error = BrokerError::DiskFull { free_bytes: 10, reserve_bytes: 20, path: "/data".into() };
    let status = to_status(&error);
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.metadata().get(ERROR_TRAILER).unwrap(), "DISK_FULL");
    for said in ["/data", "10 bytes are free", "20 are kept free", "without a restart"] {
        assert!(status.message().contains(said), "{said:?} is not in {:?}", status.message());
    }
}

#[test]
fn a_pipeline_waits_for_room_and_goes_on_by_itself() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let data = folder();
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let of_disk = free.clone();
        let options = StoreOptions {
            free_bytes: Some(Arc::new(move || Ok(of_disk.load(Ordering::SeqCst)))),
            ..StoreOptions::default()
        };
        let mut registry = Registry::default();
        let broker = open_with(data.path(), options).unwrap();
        let runtime = Runtime::open(broker.clone(), RuntimeSettings::default(), &mut registry).unwrap();
        let instance = Instance { broker, runtime };
        instance.topic("logs", 1).await;
        instance.topic("counts", 1).await;
        instance.push("count").await;
        let values: Vec<String> = (0..200).map(|number| format!("line {number}")).collect();
        let records: Vec<_> = values.iter().map(|value| (Some("k"), value.as_str())).collect();
        instance.produce("logs", 0, &records).await;
        free.store(0, Ordering::SeqCst);
        instance.apply("pipeline: counting\nfrom: logs\nstages:\n- aggregate: count\nto: counts\n").await;
        // It reads, and finds no room for what it makes of it.
        let group = instance.broker.groups().get("counting").unwrap();
        let refused = || instance.broker.metrics().refused_disk_full() > 0;
        wait_until("a step was refused", refused).await;
        assert!(instance.records("counts", 0).await.is_empty());
        assert!(group.all_committed().iter().all(|(_, _, at)| *at == Offset::ZERO), "{:?}", group.all_committed());
        free.store(u64::MAX, Ordering::SeqCst);
        instance.caught_up().await;
        let counts = instance.records("counts", 0).await;
        assert_eq!(counts.last().unwrap().value.as_deref(), Some(&b"200"[..]), "every record once");
        instance.stop().await;
    });
}
