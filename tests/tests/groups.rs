//! Consumer groups over gRPC, call by call: members share partitions, commit, give partitions back, and are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_api::v1::groups_client::GroupsClient;
use millstream_api::v1::member_request::Message as ToServer;
use millstream_api::v1::member_response::Message as FromServer;
use millstream_api::v1::position::At;
use millstream_api::v1::reset_group_request::To;
use millstream_api::v1::topics_client::TopicsClient;
use millstream_api::v1::{ErrorCode, Format};
use millstream_api::{MESSAGE_BYTES_MAX, v1};
use millstream_broker::log::topic::TopicSettings;
use millstream_broker::{GroupId, TopicName};
use millstream_record::{BatchBuilder, Compression};
use millstream_tests::running::{Running, new_member};
use millstream_tests::{folder, guest};
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::grpc::{Served, batch_to, code, connect, soon, values};

/// A member with its stream and its assignment.
pub(super) struct Member {
    requests: UnboundedSender<v1::MemberRequest>,
    answers: Streaming<v1::MemberResponse>,
    id: String,
    owned: BTreeSet<u32>,
}

pub(super) fn join(group: &str) -> v1::Join {
    v1::Join {
        group: group.into(),
        topics: vec!["t".into()],
        client_id: "tester".into(),
        from_earliest: true,
        format: Format::Records as i32,
        ..Default::default()
    }
}

fn partitions(numbers: impl IntoIterator<Item = u32>) -> Vec<v1::TopicPartition> {
    numbers.into_iter().map(|partition| v1::TopicPartition { topic: "t".into(), partition }).collect()
}

fn numbers(partitions: &[v1::TopicPartition]) -> BTreeSet<u32> {
    partitions.iter().map(|of| of.partition).collect()
}

impl Member {
    pub(super) async fn join(channel: &Channel, join: v1::Join) -> Result<Self, Status> {
        let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
        requests.send(v1::MemberRequest { message: Some(ToServer::Join(join)) }).unwrap();
        let mut groups = GroupsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answers = groups.join(UnboundedReceiverStream::new(receiver)).await?.into_inner();
        let mut member = Self { requests, answers, id: String::new(), owned: BTreeSet::new() };
        match member.hear().await {
            FromServer::Joined(joined) => member.id = joined.member_id,
            other => panic!("{other:?} arrived before Joined"),
        }
        Ok(member)
    }

    pub(super) fn say(&self, message: ToServer) {
        self.requests.send(v1::MemberRequest { message: Some(message) }).unwrap();
    }

    pub(super) async fn hear(&mut self) -> FromServer {
        let message = soon("a member's message", self.answers.message()).await;
        message.unwrap().expect("the stream does not end").message.unwrap()
    }

    /// Waits for the next `Assigned`. Returns its generation, and the offset of each added partition.
    pub(super) async fn assigned(&mut self) -> (u64, BTreeMap<u32, u64>) {
        match self.hear().await {
            FromServer::Assigned(assigned) => {
                let added: BTreeMap<_, _> = assigned.added.iter().map(|of| (of.partition, of.offset)).collect();
                self.owned.extend(added.keys());
                assert_eq!(numbers(&assigned.partitions), self.owned, "the message must contain the whole assignment");
                (assigned.generation, added)
            }
            other => panic!("{other:?} arrived instead of Assigned"),
        }
    }

    pub(super) async fn revoke(&mut self) -> BTreeSet<u32> {
        match self.hear().await {
            FromServer::Revoke(revoke) => {
                let revoked = numbers(&revoke.partitions);
                assert!(
                    revoked.is_subset(&self.owned),
                    "{revoked:?} were revoked, but the member only owns {:?}",
                    self.owned
                );
                self.owned.retain(|partition| !revoked.contains(partition));
                revoked
            }
            other => panic!("{other:?} arrived instead of Revoke"),
        }
    }

    pub(super) fn give_back(&self, numbers: impl IntoIterator<Item = u32>) {
        self.say(ToServer::Revoked(v1::Revoked { partitions: partitions(numbers) }));
    }

    pub(super) async fn commit(&mut self, id: u64, offsets: &[(u32, u64)]) -> Option<v1::Error> {
        let offsets = offsets.iter();
        let offsets =
            offsets.map(|&(partition, offset)| v1::TopicPartitionOffset { topic: "t".into(), partition, offset });
        self.say(ToServer::Commit(v1::Commit { id, offsets: offsets.collect() }));
        match self.hear().await {
            FromServer::Committed(committed) => {
                assert_eq!(committed.id, id);
                committed.error
            }
            other => panic!("{other:?} arrived instead of Committed"),
        }
    }

    /// Reads until `count` records have arrived. Returns the values by partition.
    pub(super) async fn read(&mut self, count: usize) -> BTreeMap<u32, Vec<String>> {
        let mut read = BTreeMap::<u32, Vec<String>>::new();
        let mut left = count;
        while left > 0 {
            match self.hear().await {
                FromServer::Records(records) => {
                    assert_eq!(records.error, None);
                    left = left.checked_sub(records.records.len()).expect("no more records arrive than expected");
                    read.entry(records.partition)
                        .or_default()
                        .extend(values(&records.records).iter().map(|v| (*v).into()));
                }
                other => panic!("{other:?} arrived instead of Records"),
            }
        }
        read
    }

    /// Returns the status that ends the stream.
    pub(super) async fn removed(mut self) -> Status {
        loop {
            match soon("the end of a member", self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the member was removed without a status"),
                Err(status) => return status,
            }
        }
    }

    /// Closes the client's side of the call, and waits for the server's side.
    pub(super) async fn leave(mut self) {
        drop(self.requests);
        while let Some(message) = soon("the end of a member that left", self.answers.message()).await.unwrap() {
            assert!(!matches!(message.message, Some(FromServer::Revoke(_))), "{message:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_commits_and_does_not_listen_is_answered_when_it_does() {
    const COMMITS: u64 = 200_000;
    let served = Served::with_topic(1).await;
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    member.assigned().await;
    let commit = |id| {
        let offsets = vec![v1::TopicPartitionOffset { topic: "t".into(), partition: 0, offset: 9 }];
        v1::MemberRequest { message: Some(ToServer::Commit(v1::Commit { id, offsets })) }
    };
    for id in 0..COMMITS {
        member.requests.send(commit(id)).unwrap();
    }
    for id in 0..COMMITS {
        match member.hear().await {
            FromServer::Committed(committed) => {
                assert_eq!((committed.id, committed.error.unwrap().code()), (id, ErrorCode::OffsetOutOfRange));
            }
            other => panic!("{other:?} arrived instead of Committed"),
        }
    }
    member.leave().await;
}

async fn keep_for(served: &Served, retention_ms: u64) {
    let set = Some(v1::TopicSettings { retention_ms: Some(retention_ms), ..Default::default() });
    let alteration = v1::AlterTopicRequest { name: "t".into(), set, ..Default::default() };
    TopicsClient::new(served.channel.clone()).alter_topic(alteration).await.unwrap();
}

/// Waits until retention has moved the log start to this offset.
async fn starts_at(served: &Served, offset: u64) {
    let deleted = async {
        while served.offsets(&[0], At::Earliest(true)).await != [offset] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("retention", deleted).await;
}

#[tokio::test]
async fn a_member_that_retention_overtook_stands_where_the_topic_begins() {
    let served = Served::with_topic(1).await;
    // The timestamps are far in the past.
    served.produce(0, &[1, 2, 3]).await;
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    member.assigned().await;
    let offsets = vec![v1::TopicPartitionOffset { topic: "t".into(), partition: 0, offset: 1 }];
    let commit = v1::CommitOffsetsRequest { group: "idle".into(), offsets };
    served.groups().commit_offsets(commit).await.unwrap();
    keep_for(&served, 1_000).await;
    starts_at(&served, 3).await;
    assert_eq!(member.commit(1, &[(0, 1)]).await, None);
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 3)]));
    member.leave().await;
    // The same holds for a member whose group committed an offset before that.
    let mut next = Member::join(&served.channel, join("idle")).await.unwrap();
    assert_eq!(next.assigned().await.1, BTreeMap::from([(0, 3)]));
    next.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_retention_overtakes_while_it_waits_is_told_and_goes_on() {
    let served = Served::with_topic(1).await;
    // The timestamps are far in the past.
    served.produce(0, &[1, 2, 3]).await;
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    assert_eq!(member.assigned().await.1, BTreeMap::from([(0, 0)]));
    keep_for(&served, 1_000).await;
    starts_at(&served, 3).await;
    keep_for(&served, 3_600_000).await;
    let now_ms = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    served.produce(0, &[now_ms]).await;
    member.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    match member.hear().await {
        FromServer::Records(told) => {
            assert_eq!((told.missed_records, told.next_offset, told.log_start_offset), (3, 3, 3));
            assert_eq!((told.error, told.records.len()), (None, 0));
        }
        other => panic!("{other:?} arrived instead of the number of missed records"),
    }
    assert_eq!(member.read(1).await, BTreeMap::from([(0, vec![now_ms.to_string()])]));
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_begins_at_the_end_stands_there_from_its_first_assignment_on() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[1, 2, 3]).await;
    let latest = || v1::Join { from_earliest: false, ..join("g") };
    let mut first = Member::join(&served.channel, latest()).await.unwrap();
    assert_eq!(first.assigned().await.1, BTreeMap::from([(0, 3), (1, 0)]));
    let described = served.describe_group("g").await;
    assert_eq!(described.group.unwrap().lag, 0);
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 3), (1, 0)]));
    // The member leaves before its first commit, and records are written before another one joins.
    first.leave().await;
    served.produce(0, &[4, 5]).await;
    served.produce(1, &[6]).await;
    let mut second = Member::join(&served.channel, latest()).await.unwrap();
    assert_eq!(second.assigned().await.1, BTreeMap::from([(0, 3), (1, 0)]));
    second.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    let read = second.read(3).await;
    assert_eq!(read, BTreeMap::from([(0, vec!["4".into(), "5".into()]), (1, vec!["6".into()])]));
    second.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_has_its_turn_however_far_behind_another_is() {
    const FAR_BATCHES: u64 = 60;
    let served = Served::with_topic(2).await;
    let batch = || {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1, None, Some(&[b'x'; 100_000]), []);
        builder.finish().unwrap().into_bytes()
    };
    for _ in 0..FAR_BATCHES {
        served.log().produce(batch_to(0, batch())).await.unwrap();
    }
    served.log().produce(batch_to(1, batch())).await.unwrap();
    let by_batch = v1::Join { format: Format::Batches as i32, ..join("g") };
    let mut member = Member::join(&served.channel, by_batch).await.unwrap();
    member.assigned().await;
    member.say(ToServer::Credit(v1::Credit { bytes: 32 << 20 }));
    // An answer contains at most a megabyte, which is ten batches.
    let mut far = 0;
    loop {
        match member.hear().await {
            FromServer::Records(records) if records.partition == 1 => break,
            FromServer::Records(records) => far = records.next_offset,
            other => panic!("{other:?} arrived instead of Records"),
        }
    }
    assert!(far < FAR_BATCHES / 2, "{far} of {FAR_BATCHES} batches came before the other partition's only one");
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_reads_with_credit_commits_and_is_followed_where_it_was() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[1, 2, 3]).await;
    served.produce(1, &[4]).await;
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    let (generation, added) = member.assigned().await;
    assert_eq!(added, BTreeMap::from([(0, 0), (1, 0)]));
    let described = served.describe_group("g").await;
    let group = described.group.unwrap();
    assert_eq!((group.state.as_str(), group.members, group.generation, group.lag), ("stable", 1, generation, 4));
    assert_eq!(described.members[0].client_id, "tester");
    assert_eq!(described.members[0].member_id, member.id);
    assert!(described.offsets.iter().all(|of| of.member_id == member.id));
    // Without credit no record is sent, so the answer to a commit is the next message.
    assert_eq!(member.commit(1, &[]).await, None);
    member.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    let read = member.read(4).await;
    assert_eq!(read, BTreeMap::from([(0, vec!["1".into(), "2".into(), "3".into()]), (1, vec!["4".into()])]));
    assert_eq!(member.commit(7, &[(0, 2), (1, 1)]).await, None);
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 2), (1, 1)]));
    let error = member.commit(8, &[(0, 9)]).await.expect("the commit is refused, because the offset is out of range");
    assert_eq!(error.code(), ErrorCode::OffsetOutOfRange, "{error:?}");
    // Valid offsets are committed, and the error is about the invalid ones.
    let error =
        member.commit(9, &[(0, 9), (1, 0)]).await.expect("the commit is refused, because the offset is out of range");
    assert_eq!(error.code(), ErrorCode::OffsetOutOfRange, "{error:?}");
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 2), (1, 0)]));
    assert_eq!(member.commit(10, &[(1, 1)]).await, None);
    member.leave().await;

    let mut next = Member::join(&served.channel, join("g")).await.unwrap();
    assert_eq!(next.assigned().await.1, BTreeMap::from([(0, 2), (1, 1)]));
    next.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    assert_eq!(next.read(1).await, BTreeMap::from([(0, vec!["3".into()])]));
    // Another group has its own offsets, and begins at the end by default.
    let latest = v1::Join { from_earliest: false, ..join("other") };
    let mut other = Member::join(&served.channel, latest).await.unwrap();
    assert_eq!(other.assigned().await.1, BTreeMap::from([(0, 3), (1, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_bounds_what_is_sent() {
    let served = Served::with_topic(1).await;
    for number in 0..10 {
        served.produce(0, &[number]).await;
    }
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    member.assigned().await;
    // The size of a record's own fields, and of its value.
    let size = 64 + 1;
    member.say(ToServer::Credit(v1::Credit { bytes: 3 * size }));
    assert_eq!(member.read(3).await[&0], ["0", "1", "2"]);
    // Nothing is sent before there is more credit, so this answer is the next message.
    assert_eq!(member.commit(1, &[(0, 3)]).await, None);
    member.say(ToServer::Credit(v1::Credit { bytes: 7 * size }));
    assert_eq!(member.read(7).await[&0], ["3", "4", "5", "6", "7", "8", "9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_cooperatively_and_each_record_is_read_by_one() {
    let served = Served::with_topic(4).await;
    let mut first = Member::join(&served.channel, join("g")).await.unwrap();
    assert_eq!(first.assigned().await.1.len(), 4);
    first.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    for partition in 0..4 {
        served.produce(partition, &[1]).await;
    }
    assert_eq!(first.read(4).await.len(), 4);

    // Only the partitions that move are revoked, and they have no other owner until they are given back.
    let mut second = Member::join(&served.channel, join("g")).await.unwrap();
    assert_eq!(second.assigned().await.1, BTreeMap::new());
    let moving = first.revoke().await;
    assert_eq!((moving.len(), first.owned.len()), (2, 2));
    assert_eq!(served.describe_group("g").await.group.unwrap().state, "rebalancing");
    // They still belong to the first member until then, and the next owner begins at its committed offset.
    let offsets: Vec<_> = moving.iter().map(|partition| (*partition, 1)).collect();
    assert_eq!(first.commit(1, &offsets).await, None);
    first.give_back(moving.clone());
    let (_, added) = second.assigned().await;
    assert_eq!(added, offsets.iter().copied().collect());
    assert_eq!(served.describe_group("g").await.group.unwrap().state, "stable");

    second.say(ToServer::Credit(v1::Credit { bytes: 1 << 20 }));
    for partition in 0..4 {
        served.produce(partition, &[2]).await;
    }
    let (of_first, of_second) = (first.read(2).await, second.read(2).await);
    assert_eq!(of_first.keys().copied().collect::<BTreeSet<_>>(), first.owned);
    assert_eq!(of_second.keys().copied().collect::<BTreeSet<_>>(), moving);
    assert!(of_first.values().chain(of_second.values()).all(|values| values == &["2"]));

    // A member that leaves gives back all its partitions, and members that keep theirs are not notified.
    second.leave().await;
    assert_eq!(first.assigned().await.1.into_keys().collect::<BTreeSet<_>>(), moving);
    assert_eq!(first.owned.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_member_is_replaced() {
    let served = Served::with_topic(2).await;
    let mut stays = Member::join(&served.channel, join("g")).await.unwrap();
    stays.assigned().await;
    let other_connection = connect(&served.server).await;
    let mut lost = Member::join(&other_connection, join("g")).await.unwrap();
    lost.assigned().await;
    let moving = stays.revoke().await;
    stays.give_back(moving.clone());
    assert_eq!(lost.assigned().await.1.len(), 1);
    // The connection is lost without a leave request, like that of a killed process.
    drop((lost, other_connection));
    assert_eq!(stays.assigned().await.1.into_keys().collect::<BTreeSet<_>>(), moving);
    assert_eq!(served.describe_group("g").await.members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_from_who_does_not_own_is_refused() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[1, 2]).await;
    served.produce(1, &[1, 2]).await;
    let mut first = Member::join(&served.channel, join("g")).await.unwrap();
    first.assigned().await;
    let mut second = Member::join(&served.channel, join("g")).await.unwrap();
    second.assigned().await;
    let moving = first.revoke().await;
    let [moved, kept] = [*moving.first().unwrap(), *first.owned.first().unwrap()];
    // Partitions that the second member does not own yet, or does not own at all.
    for partition in [moved, kept] {
        let error = second
            .commit(1, &[(partition, 1)])
            .await
            .expect("the commit is refused, because the member does not own the partition");
        assert_eq!(error.code(), ErrorCode::StaleGeneration);
        let words = format!("group g: member {} does not own topic t, partition {partition}", second.id);
        assert!(error.message.contains(&words), "{error:?}");
    }
    first.give_back(moving);
    second.assigned().await;
    // The first member no longer owns one of these, so the whole commit is refused.
    let error = first
        .commit(2, &[(kept, 1), (moved, 1)])
        .await
        .expect("the commit is refused, because the member gave a partition back");
    assert_eq!(error.code(), ErrorCode::StaleGeneration, "{error:?}");
    assert_eq!(served.committed("g").await, BTreeMap::new());
    assert_eq!(second.commit(3, &[(moved, 2)]).await, None);
    assert_eq!(first.commit(4, &[(kept, 1)]).await, None);
    assert_eq!(served.committed("g").await, BTreeMap::from([(moved, 2), (kept, 1)]));
    // While a group has members, offsets cannot be committed from outside either.
    let offsets = vec![v1::TopicPartitionOffset { topic: "t".into(), partition: 0, offset: 0 }];
    let commit = v1::CommitOffsetsRequest { group: "g".into(), offsets };
    let status = served.groups().commit_offsets(commit).await.unwrap_err();
    assert_eq!(code(&status), Some(ErrorCode::InUse), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_give_back_in_time_is_removed() {
    let served = Served::with_topic(4).await;
    let hasty = v1::Join { rebalance_timeout_ms: 300, ..join("g") };
    for given_back in [None, Some(0), Some(1)] {
        let mut holds = Member::join(&served.channel, hasty.clone()).await.unwrap();
        assert_eq!(holds.assigned().await.1.len(), 4);
        let mut waits = Member::join(&served.channel, join("g")).await.unwrap();
        waits.assigned().await;
        let moving = holds.revoke().await;
        // The member gives back nothing, or too little.
        if let Some(count) = given_back {
            holds.give_back(moving.iter().copied().take(count));
        }
        let status = holds.removed().await;
        assert_eq!(code(&status), Some(ErrorCode::StaleGeneration), "{status:?}");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("did not give partitions back"), "{status:?}");
        while waits.owned.len() < 4 {
            waits.assigned().await;
        }
        waits.leave().await;
        // The group must be empty before the next round.
        let left = || async { served.describe_group("g").await.members.is_empty() };
        soon("the members leave", async {
            while !left().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_asked_again_before_it_answers_has_no_more_time() {
    const TIMEOUT: Duration = Duration::from_millis(900);
    const REVOKES_MAX: usize = 12;
    // There are so many partitions that each new member is to be assigned some from the first one.
    let served = Served::with_topic(200).await;
    let hasty = v1::Join { rebalance_timeout_ms: TIMEOUT.as_millis() as u32, ..join("g") };
    let mut holds = Member::join(&served.channel, hasty).await.unwrap();
    holds.assigned().await;
    let mut newcomers = Vec::new();
    let status = loop {
        assert!(newcomers.len() < REVOKES_MAX, "the member was not removed after {REVOKES_MAX} unanswered Revokes");
        newcomers.push(Member::join(&served.channel, join("g")).await.unwrap());
        match soon("a Revoke, or the end", holds.answers.message()).await {
            Ok(Some(v1::MemberResponse { message: Some(FromServer::Revoke(_)) })) => {}
            Ok(other) => panic!("{other:?} arrived instead of Revoke"),
            Err(status) => break status,
        }
        // This sleep does not wait for anything. It spaces the Revokes by a fraction of the timeout.
        tokio::time::sleep(TIMEOUT / 3).await;
    };
    assert_eq!(code(&status), Some(ErrorCode::StaleGeneration), "{status:?}");
    assert!(status.message().contains("did not give partitions back within 900ms"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_gives_back_in_time_stays() {
    let served = Served::with_topic(6).await;
    let hasty = || v1::Join { rebalance_timeout_ms: 300, ..join("g") };
    let mut stays = Member::join(&served.channel, hasty()).await.unwrap();
    stays.assigned().await;
    let mut silent = Member::join(&served.channel, hasty()).await.unwrap();
    silent.assigned().await;
    let moving = stays.revoke().await;
    stays.give_back(moving);
    silent.assigned().await;
    // Each round takes as long as the timeout, because another member that was asked at the same time does not answer
    // and is removed.
    for _ in 0..3 {
        let mut next = Member::join(&served.channel, hasty()).await.unwrap();
        next.assigned().await;
        let moving = stays.revoke().await;
        stays.give_back(moving);
        let status = silent.removed().await;
        assert_eq!(code(&status), Some(ErrorCode::StaleGeneration), "{status:?}");
        while next.owned.len() < 3 {
            next.assigned().await;
        }
        while stays.owned.len() < 3 {
            stays.assigned().await;
        }
        silent = next;
    }
    let members = served.describe_group("g").await.members;
    assert!(members.iter().any(|member| member.member_id == stays.id), "{} is not among {members:?}", stays.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_added_since_is_read_from_its_first_record_whoever_has_it() {
    let served = Served::with_topic(1).await;
    served.produce(0, &[1]).await;
    let latest = || v1::Join { from_earliest: false, ..join("g") };
    let mut first = Member::join(&served.channel, latest()).await.unwrap();
    assert_eq!(first.assigned().await.1, BTreeMap::from([(0, 1)]));
    let mut second = Member::join(&served.channel, latest()).await.unwrap();
    assert_eq!(second.assigned().await.1, BTreeMap::new());
    let alteration = v1::AlterTopicRequest { name: "t".into(), partitions: Some(2), ..Default::default() };
    TopicsClient::new(served.channel.clone()).alter_topic(alteration).await.unwrap();
    assert_eq!(second.assigned().await.1, BTreeMap::from([(1, 0)]));
    // No member has committed an offset in this partition when it changes hands.
    served.produce(1, &[1, 2, 3]).await;
    second.leave().await;
    assert_eq!(first.assigned().await.1, BTreeMap::from([(1, 0)]));
    // The starting offset belongs to the group, whoever joins it.
    first.leave().await;
    let mut next = Member::join(&served.channel, latest()).await.unwrap();
    assert_eq!(next.assigned().await.1, BTreeMap::from([(0, 1), (1, 0)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_speaks_out_of_turn_is_told() {
    let served = Served::with_topic(1).await;
    let mut groups = served.groups();
    let credit = v1::MemberRequest { message: Some(ToServer::Credit(v1::Credit { bytes: 1 })) };
    let status = groups.join(futures::stream::iter([credit])).await.unwrap_err();
    assert!(status.message().contains("the first message of a member must be Join"), "{status:?}");
    let member = Member::join(&served.channel, join("g")).await.unwrap();
    member.say(ToServer::Join(join("g")));
    let status = member.removed().await;
    assert_eq!(code(&status), Some(ErrorCode::InvalidRequest));
    assert!(status.message().contains("only once per stream"), "{status:?}");
    let nothing = v1::Join { topics: Vec::new(), ..join("g") };
    let status = Member::join(&served.channel, nothing).await.err().unwrap();
    assert!(status.message().contains("names no topic"), "{status:?}");
    let named = v1::Join { client_id: "a b".into(), ..join("g") };
    let status = Member::join(&served.channel, named).await.err().unwrap();
    assert!(status.message().contains("client id \"a b\" is not allowed"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_in_use_is_neither_reset_nor_deleted() {
    let served = Served::with_topic(2).await;
    served.produce(0, &[10, 20, 30]).await;
    let reset = |to: To, dry_run: bool| v1::ResetGroupRequest {
        group: "g".into(),
        topic: "t".into(),
        partitions: vec![],
        to: Some(to),
        dry_run,
    };
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    member.assigned().await;
    assert_eq!(member.commit(1, &[(0, 1)]).await, None);
    for dry_run in [false, true] {
        let status = served.groups().reset_group(reset(To::Earliest(true), dry_run)).await.unwrap_err();
        assert_eq!((code(&status), status.code()), (Some(ErrorCode::InUse), Code::FailedPrecondition), "{status:?}");
        assert!(status.message().contains("group g is in use"), "{status:?}");
    }
    let delete = || v1::DeleteGroupRequest { name: "g".into() };
    let status = served.groups().delete_group(delete()).await.unwrap_err();
    assert_eq!(code(&status), Some(ErrorCode::InUse), "{status:?}");
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 1)]));
    member.leave().await;

    let set = async |to: To, dry_run: bool| {
        let offsets = served.groups().reset_group(reset(to, dry_run)).await.unwrap().into_inner().offsets;
        offsets.into_iter().map(|of| of.offset).collect::<Vec<_>>()
    };
    assert_eq!(set(To::Latest(true), true).await, [3, 0]);
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 1)]), "a dry run must not change offsets");
    assert_eq!(set(To::TimestampMs(15), false).await, [1, 0]);
    assert_eq!(set(To::Latest(true), false).await, [3, 0]);
    assert_eq!(set(To::Earliest(true), false).await, [0, 0]);
    assert_eq!(served.committed("g").await, BTreeMap::from([(0, 0), (1, 0)]));
    served.groups().delete_group(delete()).await.unwrap();
    let status = served.groups().delete_group(delete()).await.unwrap_err();
    assert_eq!(code(&status), Some(ErrorCode::UnknownGroup));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipelines_group_is_the_pipelines() {
    let served = Served::with_topic(1).await;
    let admin = served.server.client().admin();
    admin.push_module("level", guest("level")).await.unwrap();
    let yaml = "pipeline: p\nfrom: t\nstages:\n  - filter: level\n    with: { level: warn }\nto: out\n".to_owned();
    admin.apply_pipeline(v1::ApplyPipelineRequest { yaml, ..Default::default() }).await.unwrap();
    let status = Member::join(&served.channel, join("p")).await.err().unwrap();
    assert_eq!(code(&status), Some(ErrorCode::InUse), "{status:?}");
    assert!(status.message().contains("group p belongs to a pipeline"), "{status:?}");
    let offsets = vec![v1::TopicPartitionOffset { topic: "t".into(), partition: 0, offset: 0 }];
    let status = admin.commit_offsets("p", offsets).await.unwrap_err();
    assert_eq!(status.code(), Some(ErrorCode::InUse), "{status}");
    let reset = || v1::ResetGroupRequest {
        group: "p".into(),
        topic: "t".into(),
        to: Some(To::Earliest(true)),
        ..Default::default()
    };
    let error = admin.reset_group(reset()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InUse), "{error}");
    let error = admin.delete_group("p").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InUse), "{error}");
    admin.pause_pipeline("p").await.unwrap();
    assert_eq!(admin.reset_group(reset()).await.unwrap()[0].offset, 0);
    // Conversely, a pipeline cannot use the group of consumers.
    let mut member = Member::join(&served.channel, join("g")).await.unwrap();
    member.assigned().await;
    let yaml = "pipeline: g\nfrom: t\nstages:\n  - filter: level\n    with: { level: warn }\nto: out2\n".to_owned();
    let applied = admin.apply_pipeline(v1::ApplyPipelineRequest { yaml, ..Default::default() }).await.unwrap();
    let mistake = &applied.mistakes[0];
    assert_eq!((mistake.line, mistake.column), (1, 11), "{applied:?}");
    assert!(mistake.message.contains("group g belongs to consumers"), "{mistake:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_member_any_more_ends_no_generation_by_leaving() {
    let data = folder();
    let running = Running::open(data.path(), 0);
    running.topic("t", 4, TopicSettings::default()).await;
    let join = || {
        let topics = BTreeSet::from([TopicName::new("t").unwrap()]);
        running.broker.join_group(&GroupId::new("g").unwrap(), new_member("tester", topics)).unwrap()
    };
    let (group, gone, _events) = join();
    let (_, stays, _events) = join();
    running.broker.leave_group(&group, &gone);
    let generation = group.generation();
    running.broker.leave_group(&group, &gone);
    assert_eq!(group.generation(), generation);
    running.broker.leave_group(&group, &stays);
    assert!(group.generation() > generation);
    running.stop().await;
}
