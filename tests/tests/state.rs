//! Reads of accumulators of aggregate stages while they change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_broker::Broker;
use millstream_broker::log::commit::Commit;
use millstream_broker::log::state::StatePartition;
use millstream_broker::store::{KeyRange, Namespace, StateChange, StoreOptions};
use millstream_record::Column;
use millstream_runtime::stage::aggregate::{Accumulators, Groups};
use millstream_runtime::state::TaskState;
use millstream_tests::folder;

use millstream_tests::workload::{block_on, open_with};

const STORE: &str = "pipeline/stage";
const KEYS: u32 = 20_000;

/// Sets all keys to `round`, with a thousand keys per commit.
async fn set_all(broker: &Broker, round: u32, added: i64) {
    for thousand in 0..KEYS / 1000 {
        let (mut keys, mut accumulators) = (Column::default(), Column::default());
        for key in thousand * 1000..(thousand + 1) * 1000 {
            keys.push(Some(&key.to_be_bytes()));
            accumulators.push(Some(&round.to_be_bytes()));
        }
        let change = StateChange { store: STORE.into(), keys, accumulators, added, ..StateChange::default() };
        broker.commit(Commit { state: vec![change], ..Commit::default() }).await.unwrap().await.unwrap();
    }
}

/// Checks that a scan returns each key once.
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

fn groups<'k>(state: &TaskState, keys: impl IntoIterator<Item = &'k str>) -> Groups {
    let mut groups = Groups::new(state.hasher().clone());
    for key in keys {
        groups.group_of(key.as_bytes());
    }
    groups
}

/// Returns the change of one step of a task: keys with their new accumulators.
fn change(state: &mut TaskState, step: u64, entries: &[(&str, Option<&str>)]) -> StateChange {
    let groups = groups(state, entries.iter().map(|(key, _)| *key));
    let accumulators = entries.iter().map(|(_, accumulator)| accumulator.map(str::as_bytes)).collect();
    let mut before = Column::default();
    state.look_up(&groups, &mut before).unwrap();
    state.change(step, groups, &before, accumulators)
}

fn sees(state: &TaskState, keys: &[&str]) -> Vec<Option<String>> {
    let groups = groups(state, keys.iter().copied());
    let mut found = Column::default();
    state.look_up(&groups, &mut found).unwrap();
    found.iter().map(|entry| entry.map(|entry| String::from_utf8(entry.to_vec()).unwrap())).collect()
}

#[test]
fn a_task_sees_its_steps_that_are_not_committed_and_forgets_them_once_they_are() {
    let data = folder();
    let broker = open_with(data.path(), StoreOptions::default()).unwrap();
    let some = |text: &str| Some(text.to_owned());
    block_on(async {
        let mut state = TaskState::new(STORE.into(), 0, broker.state().partition(STORE, 0));
        let first = change(&mut state, 0, &[("a", Some("a0")), ("b", Some("b0"))]);
        assert_eq!(first.added, 2);
        let second = change(&mut state, 1, &[("c", Some("c1")), ("a", None)]);
        assert_eq!(second.added, 0);
        assert_eq!(change(&mut state, 2, &[("b", Some("b2"))]).added, 0);
        assert_eq!(sees(&state, &["a", "b", "c", "d"]), [None, some("b2"), some("c1"), None]);
        // A step that is taken back is undone, and the steps before it remain.
        state.take_back(2);
        assert_eq!(sees(&state, &["a", "b", "c"]), [None, some("b0"), some("c1")]);

        broker.commit(Commit { state: vec![first], ..Commit::default() }).await.unwrap().await.unwrap();
        state.committed_up_to(0);
        assert_eq!(sees(&state, &["a", "b", "c"]), [None, some("b0"), some("c1")]);
        // The second step was not actually committed. This shows that the task forgets what it is told is committed.
        state.committed_up_to(1);
        assert_eq!(sees(&state, &["a", "b", "c"]), [some("a0"), some("b0"), None]);
        broker.stop();
    });
}

#[test]
fn namespaces_and_ranges_of_keys_hold_in_memory_in_the_tables_and_after_a_restart() {
    const TIMERS: Namespace = Namespace(1);
    let data = folder();
    let mut broker = open_with(data.path(), StoreOptions::default()).unwrap();
    block_on(async {
        let set = async |broker: &Broker, namespace, keys: &[u32], removed: &[(u32, Option<u32>)], added| {
            let (mut columns, mut values) = (Column::default(), Column::default());
            for key in keys {
                columns.push(Some(&key.to_be_bytes()));
                values.push(Some(&namespace_value(namespace, *key)));
            }
            let range = |(from, to): &(u32, Option<u32>)| KeyRange {
                from: from.to_be_bytes().to_vec(),
                to: to.map(|to| to.to_be_bytes().to_vec()),
            };
            let change = StateChange {
                store: STORE.into(),
                partition: 0,
                namespace,
                removed: removed.iter().map(range).collect(),
                keys: columns,
                accumulators: values,
                added,
            };
            broker.commit(Commit { state: vec![change], ..Commit::default() }).await.unwrap().await.unwrap();
        };
        let holds = |broker: &Broker, namespace, expected: &[u32], when: &str| {
            let state = broker.state().namespace(STORE, 0, namespace);
            let mut found: Vec<_> = state.scan(b"", usize::MAX).unwrap();
            found.sort();
            let expected: Vec<_> = expected
                .iter()
                .map(|key| (key.to_be_bytes().to_vec(), namespace_value(namespace, *key).to_vec()))
                .collect();
            assert_eq!(found, expected, "a scan of {namespace:?}, {when}");
            for key in 0..30u32 {
                let value = state.get(&key.to_be_bytes()).unwrap();
                let is_there = expected.iter().any(|(there, _)| *there == key.to_be_bytes());
                assert_eq!(value.is_some(), is_there, "key {key} of {namespace:?}, {when}");
            }
        };
        let all: Vec<u32> = (0..20).collect();
        set(&broker, Namespace::VALUES, &all, &[], 20).await;
        set(&broker, TIMERS, &all, &[], 0).await;
        for sealed in [false, true] {
            if sealed {
                seal(&broker).await;
            }
            holds(&broker, Namespace::VALUES, &all, "all of it");
            holds(&broker, TIMERS, &all, "all of it");
        }
        // Removed keys can be set again, in the same change and in a later one.
        set(&broker, TIMERS, &[6], &[(5, Some(9)), (15, None)], 0).await;
        set(&broker, TIMERS, &[17], &[], 0).await;
        let left = [0, 1, 2, 3, 4, 6, 9, 10, 11, 12, 13, 14, 17];
        for round in ["in the journal", "after a restart", "in the tables", "in the tables after a restart"] {
            if round == "in the tables" {
                seal(&broker).await;
            }
            if round.ends_with("restart") {
                stop(broker);
                broker = open_with(data.path(), StoreOptions::default()).unwrap();
            }
            holds(&broker, Namespace::VALUES, &all, round);
            holds(&broker, TIMERS, &left, round);
            assert_eq!(broker.state().partitions(STORE).len(), 1);
            assert_eq!(broker.state().partition(STORE, 0).len(), 20, "timers are not counted, {round}");
        }
        stop(broker);
    });
}

fn namespace_value(namespace: Namespace, key: u32) -> [u8; 5] {
    let mut value = [namespace.0; 5];
    value[1..].copy_from_slice(&key.to_be_bytes());
    value
}

/// Changes the state of another store until the content of the journal is in the tables. It commits several times the
/// maximum size of the journal.
async fn seal(broker: &Broker) {
    for _ in 0..200 {
        let (mut keys, mut accumulators) = (Column::default(), Column::default());
        keys.push(Some(b"key"));
        accumulators.push(Some(&[7; 20_000]));
        let change = StateChange { store: "other/stage".into(), keys, accumulators, ..StateChange::default() };
        broker.commit(Commit { state: vec![change], ..Commit::default() }).await.unwrap().await.unwrap();
    }
}

fn stop(broker: Broker) {
    broker.stop();
}
