//! A broker on a disk that breaks repeatedly. Everything acknowledged must exist afterwards, and each commit must have
//! taken effect completely or not at all.

use std::path::Path;
use std::time::Duration;

use millstream_broker::broker::check::check_on;
use millstream_broker::log::commit::Commit;
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError};
use millstream_tests::disk::{Call, Disk, Effect, Fault, Kind};
use millstream_tests::workload::{Workload, block_on, open_with};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::run::Run;

/// Path of the data directory.
pub(crate) const DATA: &str = "/data";

/// Returns a random fault, or none. Some faults strike while the store opens.
fn fault(random: &mut StdRng) -> Option<Fault> {
    let max: u64 = [30, 100, 600][random.random_range(0..3)];
    let number = random.random_range(1..max);
    let file = match random.random_range(0..6) {
        0 => Some(Kind::Journal),
        1 => Some(Kind::Tables),
        2 => Some(Kind::Segment),
        _ => None,
    };
    let call = [Call::Write, Call::SetLen, Call::Sync, Call::Name, Call::Read][random.random_range(0..5)];
    // There are several writes for each other call.
    let of_call = if matches!(call, Call::Write | Call::Read) { number } else { number.div_ceil(6) };
    match random.random_range(0..10) {
        0 => None,
        1..3 => Some(Fault { file, call: Some(call), number: of_call, effect: Effect::Fail }),
        3 => Some(Fault { file, call: Some(Call::Write), number, effect: Effect::Tear }),
        // redb does not verify the pages that it reads. Only segments have our checksums.
        4 => Some(Fault { file: Some(Kind::Segment), call: Some(Call::Read), number, effect: Effect::Damage }),
        _ => Some(Fault { file, call: None, number, effect: Effect::PowerOff }),
    }
}

/// Exposes one data directory to several faults, some of them while it is opened.
async fn survive(run: &mut Run, mut workload: Workload, options: impl Fn(StoreOptions) -> StoreOptions) {
    let mut random = StdRng::seed_from_u64(run.seed);
    let (disk, data) = (Disk::default(), Path::new(DATA));
    for _ in 0..random.random_range(1..6) {
        let fault = fault(&mut random);
        disk.set_faults(fault);
        disk.set_delays(random.random_bool(0.2).then(|| random.random()));
        match open_with(data, options(disk.options())) {
            Err(error) => assert!(disk.struck(), "the broker cannot be opened: {error}"),
            Ok(broker) => {
                if workload.check_unless_struck(&broker, &disk).await {
                    let steps = random.random_range(1..60);
                    let ran = workload.run(&broker, &mut random, steps).await;
                    if ran.is_ok() {
                        // This check runs concurrently with the sealer.
                        workload.check_unless_struck(&broker, &disk).await;
                    }
                    if let Err(error) = ran {
                        assert!(matches!(error, BrokerError::Storage(_)), "{fault:?}: {error}");
                        assert!(disk.struck(), "{fault:?}: a commit failed although the disk met no fault: {error}");
                        check_refuses(&broker).await;
                    }
                }
                broker.stop();
            }
        }
        if disk.struck() {
            run.met(match fault {
                Some(Fault { effect: Effect::Damage, .. }) => "a damaged read",
                Some(Fault { call: Some(Call::Read), .. }) => "a failed read",
                _ => "a fault",
            });
        }
        match fault {
            Some(Fault { effect: Effect::PowerOff, .. }) => disk.lose_power(random.random()),
            // A power loss may also follow another fault.
            _ if random.random_bool(0.5) => disk.lose_power(random.random()),
            _ => disk.end_process(),
        }
    }
    check_goes_on(data, options(disk.options()), &mut workload, &mut random, 5).await;
    let report = check_on(&disk.file_system(), data, false).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let [compacted, retained] = workload.cleaned;
    for (count, what) in [(compacted, "compaction"), (retained, "retention")] {
        if count > 0 {
            run.met(what);
        }
    }
}

/// Checks that a store on a healthy disk holds what it must when it is opened, and again after this many further steps.
pub(crate) async fn check_goes_on(
    data: &Path,
    options: StoreOptions,
    workload: &mut Workload,
    random: &mut StdRng,
    steps: usize,
) {
    let broker = open_with(data, options).unwrap();
    workload.check(&broker).await;
    workload.run(&broker, random, steps).await.unwrap();
    workload.check(&broker).await;
    broker.stop();
}

/// Returns options with continuous retention, compaction and merging, and with a few keys per compaction pass.
pub(crate) fn always_cleaning(options: StoreOptions) -> StoreOptions {
    StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), compaction_keys_max: Some(6), ..options }
}

/// Checks that a broken store refuses further writes and reports its failure.
pub(crate) async fn check_refuses(broker: &Broker) {
    assert!(broker.store().has_failed());
    assert!(broker.failure().borrow().is_some(), "the store reports its failure");
    let refused = broker.commit(Commit::default()).await.unwrap().await;
    assert!(matches!(refused, Err(BrokerError::Storage(_))), "{refused:?}");
}

pub(crate) fn crashes(run: &mut Run) {
    block_on(survive(run, Workload::default(), |options| options));
}

/// Like `crashes`, with a compacted topic and one with retention.
pub(crate) fn cleaning(run: &mut Run) {
    block_on(survive(run, Workload::cleaned(), always_cleaning));
}
