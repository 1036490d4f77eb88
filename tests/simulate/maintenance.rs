//! Repairs, backups and restores that lose power while they run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use millstream_broker::Broker;
use millstream_broker::broker::check::check_on;
use millstream_broker::store::Report;
use millstream_broker::store::backup::{BackupError, BackupFolder, Snapshot, restore_on};
use millstream_tests::disk::{BROKEN, Disk, Effect, Fault};
use millstream_tests::workload::{Workload, block_on, open_with};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crashes::{DATA, always_cleaning, check_goes_on};
use crate::run::Run;

const BACKUP: &str = "/backup";
const RESTORED: &str = "/restored";

/// A power loss strikes at one of the first calls of a repair or a restore, up to this number.
const CALLS_MAX: u64 = 200;

fn power_off(random: &mut StdRng) -> Fault {
    Fault { file: None, call: None, number: random.random_range(1..CALLS_MAX), effect: Effect::PowerOff }
}

/// Returns whether an error comes from a disk without power.
fn is_of_disk(error: &dyn std::fmt::Display) -> bool {
    error.to_string().contains(BROKEN)
}

/// Creates a data directory by a workload that was stopped or lost power.
async fn written(random: &mut StdRng, disk: &Disk) -> Workload {
    let mut workload = if random.random_bool(0.5) { Workload::default() } else { Workload::cleaned() };
    let broker = open_with(Path::new(DATA), always_cleaning(disk.options())).unwrap();
    let steps = random.random_range(20..120);
    workload.run(&broker, random, steps).await.unwrap();
    broker.stop();
    drop(broker);
    if random.random_bool(0.5) {
        disk.lose_power(random.random())
    } else {
        disk.end_process()
    }
    workload
}

/// Checks that a sound directory survives repeated `check --repair` runs that lose power at any call.
pub(crate) fn repair_of_sound(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let mut workload = written(&mut random, &disk).await;
        for _ in 0..random.random_range(1..4) {
            disk.set_faults([power_off(&mut random)]);
            match check_on(&disk.file_system(), Path::new(DATA), true) {
                Ok(report) if disk.struck() => assert!(told_of_disk(&report), "{report:#?}"),
                Ok(report) => assert!(report.is_sound(), "{report:#?}"),
                Err(error) => assert!(disk.struck() && is_of_disk(&error), "{error}"),
            }
            if disk.struck() {
                run.met("a loss of power");
                disk.lose_power(random.random());
            } else {
                disk.end_process();
            }
        }
        let report = check_on(&disk.file_system(), Path::new(DATA), true).unwrap();
        assert!(report.is_sound(), "{report:#?}");
        check_goes_on(Path::new(DATA), disk.options(), &mut workload, &mut random, 10).await;
    });
}

/// Returns whether the damages in a report come from the missing power, or were not repaired.
fn told_of_disk(report: &Report) -> bool {
    report.damages.iter().all(|damage| damage.reason.contains(BROKEN) || !damage.repaired)
}

/// Flips one bit of a segment, and checks that a repair that loses power leaves the directory unchanged or repaired,
/// that the next repair completes, and that the repair loses no more records than the first check reported.
pub(crate) fn repair_of_damaged(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let workload = written(&mut random, &disk).await;
        let segments: Vec<PathBuf> =
            disk.files().into_iter().filter(|path| is_segment(path) && disk.len(path) > 0).collect();
        if segments.is_empty() {
            return;
        }
        let segment = &segments[random.random_range(0..segments.len())];
        disk.flip(segment, random.random_range(0..disk.len(segment)), random.random_range(0..8));
        let system = disk.file_system();
        let found = check_on(&system, Path::new(DATA), false).unwrap();
        disk.end_process();
        if found.is_sound() {
            // The bit belongs to a segment that is no longer used.
            return;
        }
        run.met("damage");
        let lost = lost_records(&found);
        for _ in 0..random.random_range(0..3) {
            disk.set_faults([power_off(&mut random)]);
            if let Err(error) = check_on(&system, Path::new(DATA), true) {
                assert!(disk.struck() && is_of_disk(&error), "{error}");
            }
            if disk.struck() {
                run.met("a loss of power");
                disk.lose_power(random.random());
            } else {
                disk.end_process();
            }
        }
        let repaired = check_on(&system, Path::new(DATA), true).unwrap();
        assert!(repaired.is_repaired(), "{repaired:#?}");
        assert!(
            lost_records(&repaired) <= lost,
            "the repair lost more records than reported: {repaired:#?} after {found:#?}"
        );
        let after = check_on(&system, Path::new(DATA), false).unwrap();
        assert!(after.is_sound(), "{after:#?}");
        let broker = open_with(Path::new(DATA), disk.options()).unwrap();
        let missing = workload.missing(&broker).await;
        assert!(missing <= lost, "{missing} records are gone, but only {lost} were reported: {found:#?}");
        broker.stop();
    });
}

fn is_segment(path: &Path) -> bool {
    path.starts_with(Path::new(DATA).join("segments"))
}

fn lost_records(report: &Report) -> i64 {
    let lost = |damage: &millstream_broker::store::Damage| Some(damage.last_offset? - damage.first_offset? + 1);
    report.damages.iter().filter_map(lost).sum()
}

/// Takes a backup while the broker runs, as the server and its client do.
fn back_up(broker: &Broker, disk: &Disk) -> Result<(), BackupError> {
    let mut folder = BackupFolder::create_on(&disk.file_system(), Path::new(BACKUP))?;
    let snapshot = Snapshot::take(broker.store(), broker.clock().now_ms())?;
    let mut written = Ok(());
    let manifest = snapshot.copy(|piece| {
        written = folder.write(&piece.file, piece.offset, &piece.bytes);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written?;
    folder.finish(&manifest?)
}

/// Checks that a backup taken during commits contains the state of the moment at which it was taken, that a restore
/// refuses a backup that lost power, and that a restore that loses power leaves either nothing or everything.
pub(crate) fn backups(run: &mut Run) {
    block_on(async {
        let mut random = StdRng::seed_from_u64(run.seed);
        let disk = Disk::default();
        let mut workload = written(&mut random, &disk).await;
        let broker = open_with(Path::new(DATA), always_cleaning(disk.options())).unwrap();
        workload.check(&broker).await;
        workload.run(&broker, &mut random, 10).await.unwrap();
        let before = workload.clone();
        if random.random_bool(0.3) {
            disk.set_faults([power_off(&mut random)]);
        }
        let of_thread = (broker.clone(), disk.clone());
        let backup = tokio::task::spawn_blocking(move || back_up(&of_thread.0, &of_thread.1));
        let steps = random.random_range(0..40);
        let ran = workload.run(&broker, &mut random, steps).await;
        let backup = backup.await.unwrap();
        assert!(disk.struck() || (ran.is_ok() && backup.is_ok()), "{ran:?} {backup:?}");
        broker.stop();
        drop(broker);
        let mut taken = workload.copied_since(&before);
        let system = disk.file_system();
        if disk.struck() {
            disk.lose_power(random.random());
            run.met("a loss of power during a backup");
        } else {
            disk.end_process();
        }
        let mut restored = false;
        for attempt in 0..8 {
            // The last attempts meet no fault.
            disk.set_faults((attempt < 3).then(|| power_off(&mut random)));
            match restore_on(&system, Path::new(BACKUP), Path::new(RESTORED), |_, _| ControlFlow::Continue(())) {
                Ok(_) => restored = true,
                // Removes the folder, as the error's message instructs.
                Err(BackupError::InTheWay { path }) => system.remove_folder(&path).unwrap_or_default(),
                // A previous attempt completed the restore, but lost power before it returned.
                Err(BackupError::NotEmpty { .. }) if attempt > 0 => restored = true,
                Err(error @ (BackupError::NotABackup { .. } | BackupError::Damaged { .. })) => {
                    assert!(backup.is_err() || disk.struck(), "{error}");
                }
                Err(error) => assert!(disk.struck() && is_of_disk(&error), "{error}"),
            }
            if disk.struck() {
                run.met("a loss of power during a restore");
                disk.lose_power(random.random());
            } else {
                disk.end_process();
            }
            if restored {
                break;
            }
        }
        if restored {
            run.met("a restore");
            check_goes_on(Path::new(RESTORED), disk.options(), &mut taken, &mut random, 10).await;
            let report = check_on(&system, Path::new(RESTORED), false).unwrap();
            assert!(report.is_sound(), "{report:#?}");
        } else {
            assert!(backup.is_err(), "a complete backup must be restorable");
        }
        // Whatever happened to the copy, the source must be intact.
        let broker = open_with(Path::new(DATA), disk.options()).unwrap();
        workload.check(&broker).await;
        broker.stop();
    });
}
