//! The accumulators of aggregate stages, read while they change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_broker::Broker;
use millstream_broker::state::{StateChange, StatePartition};
use millstream_broker::store::{Commit, StoreOptions};
use millstream_record::Column;
use millstream_tests::folder;

use millstream_tests::workload::{block_on, open_with};

const STORE: &str = "pipeline/stage";
const KEYS: u32 = 20_000;

/// Sets all keys to `round`, a thousand a commit.
async fn set_all(broker: &Broker, round: u32, added: i64) {
    for thousand in 0..KEYS / 1000 {
        let (mut keys, mut accumulators) = (Column::default(), Column::default());
        for key in thousand * 1000..(thousand + 1) * 1000 {
            keys.push(Some(&key.to_be_bytes()));
            accumulators.push(Some(&round.to_be_bytes()));
        }
        let change = StateChange { store: STORE.into(), partition: 0, keys, accumulators, added };
        broker.commit(Commit { state: vec![change], ..Commit::default() }).await.unwrap().await.unwrap();
    }
}

/// Each key once.
fn check_scan(state: &StatePartition) {
    let found = state.scan(b"", usize::MAX).unwrap();
    let keys: BTreeSet<&[u8]> = found.iter().map(|(key, _)| key.as_slice()).collect();
    assert_eq!((found.len(), keys.len()), (KEYS as usize, KEYS as usize), "entries, keys");
}

#[test]
fn a_scan_has_every_key_once_while_all_of_them_change_and_move_to_the_tables() {
    let data = folder();
    let broker = open_with(data.path(), StoreOptions::default()).unwrap();
    block_on(async {
        set_all(&broker, 0, 1000).await;
        let state = broker.state().partition(STORE, 0);
        let done = Arc::new(AtomicBool::new(false));
        let scans = tokio::task::spawn_blocking({
            let done = done.clone();
            move || {
                let mut scans = 0;
                while !done.load(Ordering::Relaxed) {
                    check_scan(&state);
                    scans += 1;
                }
                scans
            }
        });
        for round in 1..=20 {
            set_all(&broker, round, 0).await;
        }
        done.store(true, Ordering::Relaxed);
        assert!(scans.await.unwrap() > 0);
        broker.stop();
    });
}
