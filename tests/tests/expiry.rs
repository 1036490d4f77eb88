//! Expiry of consumer groups and their offsets, the metadata of offsets, and commits of members that lost a partition.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::groups::{CommittedOffset, Group, GroupKind};
use millstream_broker::log::commit::{Commit, OffsetChange};
use millstream_broker::log::topic::{Topic, TopicSettings};
use millstream_broker::store::StoreOptions;
use millstream_broker::{Broker, BrokerError, BrokerSettings, GroupId, Offset, TopicName, TopicPartition};
use millstream_tests::folder;
use millstream_tests::instance::wait_until;
use millstream_tests::running::{JOURNAL_BYTES, Rounds, SetClock, append, batch_of_one, new_member};
use prometheus_client::registry::Registry;

const RETENTION_MS: u64 = 25_000;
const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// A broker whose groups expire after 25 seconds, with the clock at `now_ms`. Its rounds of retention run only on
/// request.
struct Expiring {
    broker: Broker,
    clock: Arc<SetClock>,
    rounds: Rounds,
    now_ms: i64,
}

impl Expiring {
    fn open(data: &Path, now_ms: i64) -> Self {
        let clock = Arc::new(SetClock::new(now_ms));
        let settings = BrokerSettings {
            offsets_retention_ms: RETENTION_MS,
            journal_bytes_max: JOURNAL_BYTES,
            ..BrokerSettings::default()
        };
        let options = StoreOptions { cleaning_interval: Some(Duration::from_millis(1)), ..StoreOptions::default() };
        let broker = Broker::open(data, settings, options, clock.clone(), &mut Registry::default()).unwrap();
        let rounds = Rounds::hold(&clock);
        Self { broker, clock, rounds, now_ms }
    }

    /// Lets the server run for `seconds` seconds.
    async fn run_for(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now_ms += 1_000;
            self.clock.set_ms(self.now_ms);
            self.rounds.make_one().await;
        }
    }

    async fn topic(&self, name: &str) -> Arc<Topic> {
        let name = TopicName::new(name).unwrap();
        let topic = self.broker.create_topic(&name, 1, TopicSettings::default(), false).await.unwrap();
        for _ in 0..5 {
            append(&self.broker, &topic, 0, batch_of_one(0, "k", Some("v"))).await.unwrap();
        }
        topic
    }

    async fn commit(&self, group: &str, topic: &str, offset: i64) {
        let place = TopicPartition { topic: TopicName::new(topic).unwrap(), partition: 0 };
        let offsets = [(place, Offset::new(offset).unwrap())];
        self.broker.commit_offsets(&GroupId::new(group).unwrap(), &offsets).await.unwrap();
    }

    fn groups(&self) -> Vec<String> {
        self.broker.groups().all().iter().map(|group| group.id().to_string()).collect()
    }

    async fn stop(self) {
        self.rounds.release();
        tokio::task::spawn_blocking(move || self.broker.stop()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_nobody_uses_expires_with_its_offsets() {
    let data = folder();
    assert_eq!(BrokerSettings::default().offsets_retention_ms as i64, 7 * DAY_MS);
    let mut server = Expiring::open(data.path(), 0);
    let topic = server.topic("t").await;
    let topics = || BTreeSet::from([topic.name().clone()]);
    server.commit("debugging session, 3 March", "t", 2).await;
    server.commit("busy", "t", 2).await;
    let joined = GroupId::new("joined").unwrap();
    let (group, member, _events) = server.broker.join_group(&joined, new_member("c", topics())).unwrap();
    // A pipeline's group exists as long as its pipeline.
    server.broker.groups().get_or_create(&GroupId::new("pipeline").unwrap(), GroupKind::Pipeline).unwrap();

    server.run_for(20).await;
    server.commit("busy", "t", 3).await;
    assert_eq!(server.groups(), ["busy", "debugging session, 3 March", "joined", "pipeline"]);
    server.run_for(10).await;
    assert_eq!(server.groups(), ["busy", "joined", "pipeline"], "25 seconds after its last commit");
    server.run_for(20).await;
    assert_eq!(server.groups(), ["joined", "pipeline"], "a member keeps its group without any commit");

    // The time counts from when the last member left.
    let at = [(topic.partitions()[0].name().clone(), Offset::new(1).unwrap())];
    server.broker.commit_as_member(&group, &member, &at).await.unwrap().await.unwrap();
    server.run_for(30).await;
    assert_eq!(group.committed(topic.id(), 0), Offset::new(1));
    server.broker.leave_group(&group, &member);
    server.run_for(20).await;
    assert_eq!(server.groups(), ["joined", "pipeline"]);
    server.run_for(10).await;
    assert_eq!(server.groups(), ["pipeline"]);
    server.stop().await;

    // The group does not come back after a restart.
    let server = Expiring::open(data.path(), 0);
    assert_eq!(server.groups(), Vec::<String>::new(), "the group of a pipeline without commits is not stored either");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_groups_that_commit_nothing_take_no_memory_for_long() {
    let data = folder();
    let mut server = Expiring::open(data.path(), 0);
    let topic = server.topic("t").await;
    for number in 0..1_500 {
        let id = GroupId::new(&format!("console-{number}")).unwrap();
        let new = new_member("c", BTreeSet::from([topic.name().clone()]));
        let (group, member, _events) = server.broker.join_group(&id, new).unwrap();
        server.broker.leave_group(&group, &member);
    }
    assert_eq!(server.groups().len(), 1_500);
    server.run_for(9).await;
    assert_eq!(server.groups().len(), 1_500, "a client that looked up a group may be about to use it");
    server.run_for(4).await;
    assert_eq!(server.groups(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_away_with_the_server_has_an_hour_to_come_back() {
    let data = folder();
    let server = Expiring::open(data.path(), 0);
    server.topic("t").await;
    server.commit("g", "t", 4).await;
    server.stop().await;

    // The server comes back after 30 days, and its consumers a moment later.
    let mut server = Expiring::open(data.path(), 30 * DAY_MS);
    server.run_for(20).await;
    assert_eq!(server.groups(), ["g"], "a group is kept for the retention time after a start, but at most for an hour");
    server.run_for(10).await;
    assert_eq!(server.groups(), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_offsets_in_topics_that_no_member_reads_expire_while_the_group_works() {
    let data = folder();
    let mut server = Expiring::open(data.path(), 0);
    let (read, left) = (server.topic("read").await, server.topic("left").await);
    for topic in ["read", "left"] {
        server.commit("g", topic, 2).await;
    }
    let topics = BTreeSet::from([read.name().clone()]);
    let (group, _member, _events) =
        server.broker.join_group(&GroupId::new("g").unwrap(), new_member("c", topics)).unwrap();
    server.run_for(24).await;
    assert_eq!((group.committed(read.id(), 0), group.committed(left.id(), 0)), (Offset::new(2), Offset::new(2)));
    server.run_for(4).await;
    assert_eq!((group.committed(read.id(), 0), group.committed(left.id(), 0)), (Offset::new(2), None));
    server.stop().await;
    let server = Expiring::open(data.path(), 0);
    let group = server.broker.groups().get("g").unwrap();
    assert_eq!(group.all_committed(), [(read.id(), 0, Offset::new(2).unwrap())]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_keep_their_metadata_and_are_removed_on_their_own() {
    let data = folder();
    let mut server = Expiring::open(data.path(), 7_000);
    let topic = server.topic("t").await;
    let id = GroupId::new("group of ü,\n with\0 any text").unwrap();
    let group = server.broker.groups().get_or_create(&id, GroupKind::Consumer).unwrap();
    let committed = CommittedOffset {
        offset: Offset::new(3).unwrap(),
        leader_epoch: Some(0),
        metadata: Some("read up to line 7".into()),
    };
    let change = |group: &Arc<Group>, topic: &Arc<Topic>, to| OffsetChange {
        group: group.clone(),
        topic: topic.clone(),
        partition: 0,
        to,
        expected: None,
    };
    let commit = async |broker: &Broker, change: OffsetChange| {
        broker.commit(Commit { offsets: vec![change], ..Commit::default() }).await.unwrap().await.unwrap();
    };
    commit(&server.broker, change(&group, &topic, Some(committed.clone()))).await;
    for sealed in [false, true] {
        if sealed {
            // The unsealed part of the journal moves to the tables, because this is several times the journal's maximum
            // size.
            let value = "x".repeat(20_000);
            let topic = server.broker.topic("t").unwrap();
            for _ in 0..100 {
                append(&server.broker, &topic, 0, batch_of_one(0, "k", Some(&value))).await.unwrap();
            }
        }
        server.stop().await;
        server = Expiring::open(data.path(), 9_000);
        let group = server.broker.groups().get(id.as_str()).unwrap();
        let topic = server.broker.topic("t").unwrap();
        let stored = group.stored_offset(topic.id(), 0).unwrap();
        assert_eq!((stored.committed, stored.committed_at_ms), (committed.clone(), Some(7_000)), "sealed: {sealed}");
    }
    let (group, topic) = (server.broker.groups().get(id.as_str()).unwrap(), server.broker.topic("t").unwrap());
    commit(&server.broker, change(&group, &topic, None)).await;
    assert_eq!(group.all_committed(), []);
    server.stop().await;
    let server = Expiring::open(data.path(), 9_000);
    let committed = server.broker.groups().get(id.as_str()).map(|group| group.all_committed()).unwrap_or_default();
    assert_eq!(committed, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_member_counts_only_while_the_member_owns_the_partition() {
    let data = folder();
    let server = Expiring::open(data.path(), 0);
    server.rounds.release();
    let topic = server.topic("t").await;
    let id = GroupId::new("g").unwrap();
    let topics = || BTreeSet::from([topic.name().clone()]);
    let (group, first, _events) = server.broker.join_group(&id, new_member("a", topics())).unwrap();
    let at = |offset| [(topic.partitions()[0].name().clone(), Offset::new(offset).unwrap())];
    let commit = async |member, offset| {
        server.broker.commit_as_member(&group, member, &at(offset)).await.unwrap().await.map(drop)
    };
    commit(&first, 1).await.unwrap();
    let (_, second, _events) = server.broker.join_group(&id, new_member("b", topics())).unwrap();
    let refused = commit(&second, 4).await;
    assert!(matches!(refused, Err(BrokerError::NotAssigned { .. })), "{refused:?}");
    // The generation ended while the commit was on its way, but the member still owns the partition, so the commit is
    // accepted.
    commit(&first, 2).await.unwrap();

    // The member leaves after its commit was queued, and before the committer processes it.
    let value = "x".repeat(1_000_000);
    let receipts = {
        let mut receipts = Vec::new();
        for _ in 0..20 {
            let batch = batch_of_one(0, "k", Some(&value));
            receipts.push(server.broker.produce(&topic, &topic.partitions()[0], vec![batch]).await.unwrap());
        }
        receipts
    };
    let late = server.broker.commit_as_member(&group, &first, &at(3)).await.unwrap();
    server.broker.leave_group(&group, &first);
    let late = late.await;
    assert!(matches!(late, Err(BrokerError::UnknownMember { .. })), "{late:?}");
    assert_eq!(group.committed(topic.id(), 0), Offset::new(2));
    for receipt in receipts {
        receipt.await.unwrap();
    }
    commit(&second, 3).await.unwrap();

    // After a restart the group has no members, and earlier members are not mistaken for new ones.
    server.stop().await;
    let server = Expiring::open(data.path(), 0);
    let topic = server.broker.topic("t").unwrap();
    let (group, third, _events) = server.broker.join_group(&id, new_member("c", topics())).unwrap();
    assert_ne!(third.to_string(), first.to_string());
    let refused = server.broker.commit_as_member(&group, &second, &at(5)).await.unwrap().await;
    assert!(matches!(refused, Err(BrokerError::UnknownMember { .. })), "{refused:?}");
    assert_eq!(group.committed(topic.id(), 0), Offset::new(3));
    wait_until("the third member owns the partition", || {
        group.members().consumer.owns(&third, topic.id(), topic.partitions()[0].name())
    })
    .await;
    server.stop().await;
}
