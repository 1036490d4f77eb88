//! A broker on a disk that runs full, with and without a reserve.

use std::path::Path;

use millstream_broker::log::commit::Commit;
use millstream_broker::store::{DiskFull, StoreOptions};
use millstream_broker::{Broker, BrokerError};
use millstream_tests::disk::Disk;
use millstream_tests::workload::{Workload, block_on, open_with_reserve};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::{DATA, always_cleaning, check_goes_on};
use crate::run::Run;

/// The disk space in bytes that a store with a journal of 40 KB needs to seal and clean what it holds, including redb's
/// page copies.
const RESERVE_BYTES: u64 = 1 << 20;

/// Creates a workload. Half of the workloads have continuous retention, compaction and merging.
fn workload(random: &mut StdRng, disk: &Disk) -> (Workload, StoreOptions) {
    match random.random_bool(0.5) {
        true => (Workload::default(), disk.options()),
        false => (Workload::cleaned(), always_cleaning(disk.options())),
    }
}

/// Checks that the broker runs this many steps once there is disk space again, and that it still works after it is
/// reopened.
async fn check_has_room_again(broker: Broker, disk: &Disk, workload: &mut Workload, random: &mut StdRng, steps: usize) {
    workload.run(&broker, random, steps).await.unwrap();
    workload.check(&broker).await;
    broker.stop();
    drop(broker);
    disk.end_process();
    check_after_reopening(disk, workload, random).await;
}

/// Reopens the data directory on a healthy disk with unlimited space, and checks it.
async fn check_after_reopening(disk: &Disk, workload: &mut Workload, random: &mut StdRng) {
    disk.set_room(u64::MAX);
    check_goes_on(Path::new(DATA), disk.options(), workload, random, 5).await;
}

/// Checks that a disk that runs full to the last byte loses nothing that was acknowledged.
pub(crate) fn full_disk(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let (mut workload, options) = workload(&mut random, &disk);
        let broker = open_with_reserve(Path::new(DATA), options, 0);
        let steps = random.random_range(0..30);
        workload.run(&broker, &mut random, steps).await.unwrap();
        disk.set_room(disk.used_bytes() + random.random_range(0..300_000));
        let error = workload.run_until_refused(&broker, &mut random).await;
        match &error {
            BrokerError::Storage(error) => {
                assert!(error.is_disk_full(), "{error}");
                run.met("a commit that found no room");
            }
            BrokerError::DiskFull { .. } => run.met("a sealer that found no room"),
            _ => panic!("{error}"),
        }
        // Reads still work.
        workload.check_acked(&broker).await;
        broker.stop();
        drop(broker);
        if random.random_bool(0.5) {
            disk.lose_power(random.random())
        } else {
            disk.end_process()
        }
        check_after_reopening(&disk, &mut workload, &mut random).await;
    });
}

/// Checks that a broker with a reserve refuses writes on a full disk until there is space, and that nothing fails.
pub(crate) fn reserve(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let (mut workload, options) = workload(&mut random, &disk);
        let broker = open_with_reserve(Path::new(DATA), options, RESERVE_BYTES);
        for _ in 0..3 {
            let room = disk.used_bytes() + RESERVE_BYTES + random.random_range(0..400_000);
            disk.set_room(room);
            let error = workload.run_until_refused(&broker, &mut random).await;
            let BrokerError::DiskFull(DiskFull { free_bytes, reserve_bytes, .. }) = error else { panic!("{error}") };
            assert!(free_bytes < reserve_bytes && reserve_bytes == RESERVE_BYTES);
            // Nothing is broken: reads work, and commits that need no space are accepted.
            workload.check(&broker).await;
            assert!(!broker.store().has_failed());
            broker.commit(Commit::default()).await.unwrap().await.unwrap();
        }
        disk.set_room(u64::MAX);
        check_has_room_again(broker, &disk, &mut workload, &mut random, 20).await;
    });
    run.met("a refusal");
}

/// Checks that sealing waits if only the segments folder is full, and continues without a restart.
pub(crate) fn sealing_waits(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let mut workload = Workload::default();
        let broker = open_with_reserve(Path::new(DATA), disk.options(), 0);
        let segments = Path::new(DATA).join("segments");
        disk.set_full_folder(Some(segments.clone()));
        // The journal fills up to its maximum size.
        let error = workload.run_until_refused(&broker, &mut random).await;
        assert!(matches!(error, BrokerError::DiskFull { .. }), "{error}");
        workload.check(&broker).await;
        assert_eq!(broker.store().size().segments, 0);
        // A failed attempt must remove its unfinished segment, which would otherwise fill the disk further.
        let system = disk.file_system();
        until("the unfinished segment is removed", || system.names(&segments).unwrap().is_empty()).await;
        disk.set_full_folder(None);
        until("sealing continues", || broker.store().size().segments > 0).await;
        assert!(!broker.store().has_failed());
        check_has_room_again(broker, &disk, &mut workload, &mut random, 30).await;
    });
    run.met("sealing that waited");
}

/// Waits for a condition, for at most an hour of virtual time.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(3600);
    while !condition() {
        assert!(tokio::time::Instant::now() < limit, "condition not met within an hour of virtual time: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
