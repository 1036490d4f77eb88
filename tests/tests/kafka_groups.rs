//! Groups by Kafka's classic and consumer protocols: members join, get assignments and leave, sessions end, offsets are
//! committed.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, DeleteGroupsRequest, DescribeGroupsRequest,
    FindCoordinatorRequest, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use millstream_tests::kafka_client::Client;
use millstream_tests::kafka_member::{
    Beating, Member, assign_all, assignment, commit_request, group_id, heartbeat_request, join_all, subscription, text,
};
use millstream_tests::server::Server;

use crate::cli::{Running, wait_until};
use crate::kafka::{create, started, topic};

const UNKNOWN_MEMBER: i16 = ResponseError::UnknownMemberId.code();
const REBALANCING: i16 = ResponseError::RebalanceInProgress.code();

/// Returns the committed offset of partition 0 of topic `t`.
fn committed(client: &mut Client, group: &str) -> i64 {
    let wanted = OffsetFetchRequestTopic::default().with_name(topic("t")).with_partition_indexes(vec![0]);
    let request = OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics(Some(vec![wanted]));
    client.call(5, &request).topics[0].partitions[0].committed_offset
}

/// Asks one version of an API of groups, and checks the answer.
pub(crate) fn answers(client: &mut Client, key: i16, version: i16, group: &str) {
    create(client, "t");
    let join = |client: &mut Client, version: i16| {
        let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription());
        let request = JoinGroupRequest::default()
            .with_group_id(group_id(group))
            .with_session_timeout_ms(30_000)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol]);
        let request = if version > 0 { request.with_rebalance_timeout_ms(30_000) } else { request };
        let joined = client.call(version, &request);
        match version {
            0..4 => joined,
            _ => {
                assert_eq!(joined.error_code, ResponseError::MemberIdRequired.code());
                client.call(version, &request.with_member_id(joined.member_id))
            }
        }
    };
    match key {
        FindCoordinatorRequest::KEY => {
            if version < 4 {
                let found = client.call(version, &FindCoordinatorRequest::default().with_key(text(group)));
                assert_eq!((found.error_code, found.node_id.0, &*found.host), (0, 0, "127.0.0.1"));
            } else {
                let keys = vec![text(group), text("")];
                let found = client.call(version, &FindCoordinatorRequest::default().with_coordinator_keys(keys));
                let codes: Vec<_> = found.coordinators.iter().map(|found| found.error_code).collect();
                assert_eq!(codes, [0, ResponseError::InvalidGroupId.code()]);
            }
        }
        JoinGroupRequest::KEY => {
            let joined = join(client, version);
            assert_eq!((joined.error_code, joined.generation_id, joined.members.len()), (0, 1, 1));
            assert_eq!((&joined.leader, joined.protocol_name.as_deref()), (&joined.member_id, Some("range")));
            assert_eq!(joined.members[0].metadata, subscription());
        }
        SyncGroupRequest::KEY => {
            let joined = join(client, 3);
            let assigned = SyncGroupRequestAssignment::default()
                .with_member_id(joined.member_id.clone())
                .with_assignment(assignment());
            let request = SyncGroupRequest::default()
                .with_group_id(group_id(group))
                .with_generation_id(joined.generation_id)
                .with_member_id(joined.member_id)
                .with_assignments(vec![assigned]);
            let synced = client.call(version, &request);
            assert_eq!((synced.error_code, synced.assignment), (0, assignment()));
        }
        HeartbeatRequest::KEY => {
            let joined = join(client, 3);
            let request = HeartbeatRequest::default()
                .with_group_id(group_id(group))
                .with_generation_id(joined.generation_id)
                .with_member_id(joined.member_id);
            assert_eq!(client.call(version, &request).error_code, 0);
        }
        LeaveGroupRequest::KEY => {
            let joined = join(client, 3);
            let request = LeaveGroupRequest::default().with_group_id(group_id(group));
            if version < 3 {
                let request = request.with_member_id(joined.member_id);
                assert_eq!(client.call(version, &request).error_code, 0);
                assert_eq!(client.call(version, &request).error_code, UNKNOWN_MEMBER);
            } else {
                let leaving = MemberIdentity::default().with_member_id(joined.member_id);
                let left = client.call(version, &request.with_members(vec![leaving.clone(), leaving]));
                let codes: Vec<_> = left.members.iter().map(|member| member.error_code).collect();
                assert_eq!((left.error_code, codes), (0, vec![0, UNKNOWN_MEMBER]));
            }
        }
        OffsetCommitRequest::KEY => {
            let answer = client.call(version, &commit_request(group, 3));
            assert_eq!(answer.topics[0].partitions[0].error_code, 0);
            assert_eq!(committed(client, group), 3);
        }
        OffsetFetchRequest::KEY => {
            client.call(8, &commit_request(group, 5));
            let fetch = |client: &mut Client, all: bool| {
                if version < 8 {
                    let wanted = OffsetFetchRequestTopic::default().with_name(topic("t"));
                    let wanted = (!all).then(|| vec![wanted.with_partition_indexes(vec![0, 7])]);
                    let request = OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics(wanted);
                    let partitions = &client.call(version, &request).topics[0].partitions;
                    partitions.iter().map(|of| (of.committed_offset, of.metadata.clone(), of.error_code)).collect()
                } else {
                    let wanted = OffsetFetchRequestTopics::default().with_name(topic("t"));
                    let wanted = (!all).then(|| vec![wanted.with_partition_indexes(vec![0, 7])]);
                    let of_group = OffsetFetchRequestGroup::default().with_group_id(group_id(group));
                    let request = OffsetFetchRequest::default().with_groups(vec![of_group.with_topics(wanted)]);
                    let partitions = &client.call(version, &request).groups[0].topics[0].partitions;
                    partitions
                        .iter()
                        .map(|of| (of.committed_offset, of.metadata.clone(), of.error_code))
                        .collect::<Vec<_>>()
                }
            };
            let stored = (5, Some(text("note")), 0);
            assert_eq!(fetch(client, false), [stored.clone(), (-1, Some(text("")), 0)]);
            // From version 2, all offsets of a group can be asked for.
            if version >= 2 {
                assert_eq!(fetch(client, true), [stored]);
            }
        }
        DescribeGroupsRequest::KEY => {
            join(client, 3);
            let groups = vec![group_id(group), group_id("unknown")];
            let described = client.call(version, &DescribeGroupsRequest::default().with_groups(groups)).groups;
            assert_eq!((described[0].error_code, &*described[0].group_state), (0, "CompletingRebalance"));
            assert_eq!((&*described[0].protocol_data, described[0].members.len()), ("range", 1));
            assert_eq!(
                (&*described[0].members[0].client_id, &*described[0].members[0].client_host),
                ("test", "/127.0.0.1")
            );
            let unknown = if version < 6 { 0 } else { ResponseError::GroupIdNotFound.code() };
            assert_eq!((described[1].error_code, &*described[1].group_state), (unknown, "Dead"));
        }
        ListGroupsRequest::KEY => {
            join(client, 3);
            let listed = client.call(version, &ListGroupsRequest::default()).groups;
            let own = listed.iter().find(|listed| *listed.group_id == *group).unwrap();
            assert_eq!(&*own.protocol_type, "consumer");
            if version >= 5 {
                assert_eq!((&*own.group_state, &*own.group_type), ("CompletingRebalance", "Classic"));
                let stable = ListGroupsRequest::default().with_states_filter(vec![text("Stable")]);
                assert!(client.call(version, &stable).groups.iter().all(|listed| *listed.group_id != *group));
            }
        }
        DeleteGroupsRequest::KEY => {
            client.call(8, &commit_request(group, 5));
            let groups = vec![group_id(group), group_id("unknown")];
            let deleted = client.call(version, &DeleteGroupsRequest::default().with_groups_names(groups)).results;
            let codes: Vec<_> = deleted.iter().map(|result| result.error_code).collect();
            assert_eq!(codes, [0, ResponseError::GroupIdNotFound.code()]);
            assert_eq!(committed(client, group), -1);
        }
        OffsetDeleteRequest::KEY => {
            client.call(8, &commit_request(group, 5));
            let partition = OffsetDeleteRequestPartition::default();
            let of_topic = OffsetDeleteRequestTopic::default().with_name(topic("t")).with_partitions(vec![partition]);
            let request = OffsetDeleteRequest::default().with_group_id(group_id(group)).with_topics(vec![of_topic]);
            let deleted = client.call(version, &request);
            assert_eq!((deleted.error_code, deleted.topics[0].partitions[0].error_code), (0, 0));
            assert_eq!(committed(client, group), -1);
        }
        ConsumerGroupHeartbeatRequest::KEY => {
            let member = if version == 0 { text("") } else { text("member") };
            let request = heartbeat_request(group, member, 0);
            let joined = client.call(version, &request);
            let assigned = &joined.assignment.as_ref().unwrap().topic_partitions[0].partitions;
            assert_eq!((joined.error_code, assigned), (0, &vec![0]));
            assert!(joined.member_epoch > 0 && joined.heartbeat_interval_ms > 0);
            let stranger = heartbeat_request(group, text("stranger"), 7);
            assert_eq!(client.call(version, &stranger).error_code, UNKNOWN_MEMBER);
        }
        ConsumerGroupDescribeRequest::KEY => {
            client.call(1, &heartbeat_request(group, text("member"), 0));
            let groups = vec![group_id(group), group_id("unknown")];
            let described =
                client.call(version, &ConsumerGroupDescribeRequest::default().with_group_ids(groups)).groups;
            assert_eq!((&*described[0].group_state, &*described[0].assignor_name), ("Stable", "uniform"));
            let member = &described[0].members[0];
            assert_eq!((&*member.member_id, &**member.subscribed_topic_names[0]), ("member", "t"));
            assert_eq!(member.assignment.topic_partitions[0].partitions, [0]);
            assert_eq!(described[1].error_code, ResponseError::GroupIdNotFound.code());
        }
        other => panic!("no test for key {other}"),
    }
}

#[test]
fn members_share_a_group_and_take_over_from_each_other() {
    let (server, _data) = started();
    let mut first = Member::of(server.kafka(), "g");
    create(&mut first.client, "t");
    let joined = first.join();
    assert_eq!((joined.error_code, joined.generation_id, joined.members.len()), (0, 1, 1));
    assert!(first.leads());
    let ids = [first.id.clone()];
    assert_eq!(first.sync(&ids).error_code, 0);
    assert_eq!((first.heartbeat(), first.commit(3)), (0, 0));

    // A second member begins a rebalance. The first one hears of it, and leads again.
    let mut second = Member::of(server.kafka(), "g");
    second.send_join();
    first.beat_until(REBALANCING);
    // What was read before the rebalance can be committed in it.
    assert_eq!(first.commit(4), 0);
    let joined = first.join();
    assert_eq!((joined.generation_id, joined.members.len()), (2, 2));
    assert_eq!(second.joined().members.len(), 0);
    // Members wait for the leader's assignment.
    second.send_sync(&[]);
    let ids = [second.id.clone()];
    assert_eq!(first.sync(&ids).assignment, Bytes::new());
    assert_eq!(second.synced().assignment, assignment());

    // Both protocols show the same group.
    let described = server.run(&["group", "describe", "g"]).ok();
    assert!(described.contains(&*second.id) && described.contains("stable"), "{described}");
    let request = DescribeGroupsRequest::default().with_groups(vec![group_id("g")]);
    let group = first.client.call(5, &request).groups.remove(0);
    assert_eq!((&*group.group_state, &*group.protocol_data, group.members.len()), ("Stable", "range", 2));
    let of =
        |id: &StrBytes| group.members.iter().find(|member| member.member_id == *id).unwrap().member_assignment.clone();
    assert_eq!((of(&first.id), of(&second.id)), (Bytes::new(), assignment()));

    // Nobody else may change the group's offsets now.
    let outside = first.client.call(8, &commit_request("g", 0)).topics[0].partitions[0].error_code;
    assert_eq!(outside, UNKNOWN_MEMBER);
    let refused = server.run(&["group", "reset", "g", "--topic", "t", "--to", "earliest"]).err;
    assert!(refused.contains("2 active members"), "{refused}");
    let deleted = first.client.call(2, &DeleteGroupsRequest::default().with_groups_names(vec![group_id("g")]));
    assert_eq!(deleted.results[0].error_code, ResponseError::NonEmptyGroup.code());

    // The leader leaves, and the other one leads the next generation.
    assert_eq!(first.leave(), 0);
    second.beat_until(REBALANCING);
    second.join();
    assert!(second.leads());
    assert_eq!(first.commit(9), UNKNOWN_MEMBER);
    second.generation -= 1;
    assert_eq!(second.commit(9), ResponseError::IllegalGeneration.code());
    assert_eq!(committed(&mut second.client, "g"), 4);
}

#[test]
fn a_member_that_sends_nothing_is_removed() {
    let (server, _data) = started();
    let mut members = [Member::of(server.kafka(), "g"), Member::of(server.kafka(), "g")];
    create(&mut members[0].client, "t");
    members.iter_mut().for_each(|member| member.session_ms = 6_000);
    members[0].send_join();
    members[0].joined();
    let [first, second] = &mut members;
    second.send_join();
    first.beat_until(REBALANCING);
    // The first member says nothing more. Its partitions are the second one's once its session, or the time to join, is over.
    let joined = second.joined();
    assert_eq!((joined.error_code, joined.members.len()), (0, 1));
    assert_eq!(first.heartbeat(), UNKNOWN_MEMBER);
    // And if nobody is left, the group is empty.
    wait_until("the group is empty", || server.run(&["group", "describe", "g"]).ok().contains("empty"));
}

#[test]
fn members_are_still_members_after_the_server_was_killed() {
    let data = tempfile::tempdir().unwrap();
    let arguments = ["--kafka-address", "127.0.0.1:0", "--kafka-config", "group.min.session.timeout.ms=100"];
    let mut server = Server::start_with(data.path(), &arguments);
    let mut members = [Member::of(server.kafka(), "g"), Member::of(server.kafka(), "g").with_instance("static")];
    create(&mut members[0].client, "t");
    join_all(&mut members[..1]);
    members[1].send_join();
    members[0].beat_until(REBALANCING);
    members[0].send_join();
    assign_all(&mut members);
    let generation = members[0].generation;
    let again = |server: &mut Server, members: &mut [Member]| {
        server.kill();
        server.restart();
        members.iter_mut().for_each(|member| member.client = Client::to(server.kafka()));
    };
    again(&mut server, &mut members);
    for member in &mut members {
        assert_eq!((member.heartbeat(), member.commit(3)), (0, 0));
        let synced = member.sync(&[]);
        assert_eq!((synced.error_code, synced.assignment), (0, assignment()));
    }
    // A rebalance goes on from there, and a kill in the middle of it takes nothing away.
    let mut third = Member::of(server.kafka(), "g");
    third.send_join();
    members[0].beat_until(REBALANCING);
    again(&mut server, &mut members);
    assert_eq!((members[0].heartbeat(), members[1].heartbeat()), (0, 0));
    let mut third = Member::of(server.kafka(), "g");
    third.send_join();
    members[0].beat_until(REBALANCING);
    members.iter_mut().for_each(Member::send_join);
    let joined: Vec<_> = members.iter_mut().chain([&mut third]).map(Member::joined).collect();
    assert!(joined.iter().all(|joined| (joined.error_code, joined.generation_id) == (0, generation + 1)), "{joined:?}");
    // Who left is not there after a start. Who says nothing after it is removed once its session is over.
    let [first, second] = &mut members;
    assert_eq!((first.leave(), second.leave(), third.leave()), (0, 0, 0));
    let mut last = Member::of(server.kafka(), "g");
    last.session_ms = 100;
    join_all(std::slice::from_mut(&mut last));
    again(&mut server, &mut []);
    // A member that was removed is a member again if the server is killed before its removal is stored.
    wait_until("its removal is stored", || {
        wait_until("the group is empty", || server.run(&["group", "describe", "g"]).ok().contains("empty"));
        again(&mut server, std::slice::from_mut(&mut last));
        last.heartbeat() == UNKNOWN_MEMBER
    });
    assert!(server.run(&["group", "describe", "g"]).ok().contains("empty"));
}

#[test]
fn a_static_member_that_returns_keeps_its_partitions() {
    let (server, _data) = started();
    let mut members =
        [Member::of(server.kafka(), "g").with_instance("one"), Member::of(server.kafka(), "g").with_instance("two")];
    create(&mut members[0].client, "t");
    join_all(&mut members[..1]);
    members[1].send_join();
    members[0].beat_until(REBALANCING);
    join_again(&mut members);
    let [mut leader, mut other] = members;
    if !leader.leads() {
        (leader, other) = (other, leader);
    }
    let generation = other.generation;

    // A member is started again: it has another id, and its assignment, without a rebalance.
    let instance = other.instance.clone().unwrap();
    let mut returned = Member::of(server.kafka(), "g").with_instance(&instance);
    let joined = returned.join();
    assert_eq!((joined.error_code, joined.generation_id, &joined.leader), (0, generation, &leader.id));
    assert_ne!(returned.id, other.id);
    assert_eq!(returned.sync(&[]).assignment, assignment());
    assert_eq!((leader.heartbeat(), returned.heartbeat()), (0, 0));
    // Its former self is fenced.
    let fenced = ResponseError::FencedInstanceId.code();
    assert_eq!((other.heartbeat(), other.commit(1), other.leave()), (fenced, fenced, fenced));

    // The leader is started again: it knows that it leads, and that the assignment stays.
    let instance = leader.instance.clone().unwrap();
    let mut returned_leader = Member::of(server.kafka(), "g").with_instance(&instance);
    let joined = returned_leader.join();
    assert_eq!((joined.generation_id, joined.skip_assignment, joined.members.len()), (generation, true, 2));
    assert!(returned_leader.leads());
    assert_eq!(returned_leader.sync(&[]).assignment, assignment());

    // An administrator removes a static member by its static id.
    let leaving = MemberIdentity::default().with_group_instance_id(Some(instance));
    let request = LeaveGroupRequest::default().with_group_id(group_id("g")).with_members(vec![leaving]);
    assert_eq!(returned.client.call(5, &request).members[0].error_code, 0);
    returned.beat_until(REBALANCING);
}

/// Lets the members of a group that rebalances join, and gives each of them an assignment. The last one has sent its
/// request already.
fn join_again(members: &mut [Member]) {
    let (last, others) = members.split_last_mut().unwrap();
    others.iter_mut().for_each(Member::send_join);
    others.iter_mut().for_each(|member| assert_eq!(member.joined().error_code, 0));
    assert_eq!(last.joined().error_code, 0);
    let ids: Vec<_> = members.iter().map(|member| member.id.clone()).collect();
    for member in members.iter_mut() {
        let assigned = if member.leads() { &ids[..] } else { &[] };
        member.send_sync(assigned);
    }
    for member in members {
        assert_eq!(member.synced().assignment, assignment());
    }
}

#[test]
fn members_of_different_kinds_do_not_mix() {
    let (server, _data) = started();
    let mut first = Member::of(server.kafka(), "g");
    create(&mut first.client, "t");
    join_all(std::slice::from_mut(&mut first));
    // Another assignor.
    let mut other = Member::of(server.kafka(), "g");
    other.protocols = vec!["roundrobin"];
    let refused: JoinGroupResponse = other.client.call(9, &other.join_request());
    assert_eq!(refused.error_code, ResponseError::InconsistentGroupProtocol.code());
    // A consumer over gRPC.
    let refused = server.run(&["consume", "t", "--group", "g", "--max", "1"]).err;
    assert!(refused.contains("joined by another protocol"), "{refused}");
    // And the other way round: the group is a gRPC consumer's.
    let consumer = Running::start(&server, &["consume", "t", "--group", "h"]);
    wait_until("the consumer has joined", || server.run(&["group", "list"]).ok().contains("\nh "));
    let member = Member::of(server.kafka(), "h");
    let refused: JoinGroupResponse = other.client.call(9, &member.join_request());
    assert_eq!(refused.error_code, ResponseError::InconsistentGroupProtocol.code());
    drop(consumer);
    // Sessions outside the server's bounds, and no group at all.
    other.session_ms = 10;
    let refused: JoinGroupResponse = other.client.call(9, &other.join_request());
    assert_eq!(refused.error_code, ResponseError::InvalidSessionTimeout.code());
    let refused: JoinGroupResponse = other.client.call(9, &Member::of(server.kafka(), "").join_request());
    assert_eq!(refused.error_code, ResponseError::InvalidGroupId.code());
}

#[test]
fn offsets_are_one_thing_for_all_protocols() {
    let (mut server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    server.run_with_input(&["produce", "t"], "a\nb\nc\n").ok();
    client.call(8, &commit_request("g", 2));
    assert_eq!(server.run(&["consume", "t", "--group", "g", "--until-end"]).ok(), "c\n");
    assert_eq!(committed(&mut client, "g"), 3);
    server.run(&["group", "reset", "g", "--topic", "t", "--to", "earliest"]).ok();
    assert_eq!(committed(&mut client, "g"), 0);
    let codes =
        |client: &mut Client, request: &OffsetCommitRequest| client.call(8, request).topics[0].partitions[0].error_code;
    let mut large = commit_request("g", 1);
    large.topics[0].partitions[0].committed_metadata = Some(text(&"x".repeat(5_000)));
    assert_eq!(codes(&mut client, &large), ResponseError::OffsetMetadataTooLarge.code());
    let mut unknown = commit_request("g", 1);
    unknown.topics[0].name = topic("missing");
    assert_eq!(codes(&mut client, &unknown), ResponseError::UnknownTopicOrPartition.code());
    let member = commit_request("g", 1).with_generation_id_or_member_epoch(4).with_member_id(text("gone"));
    assert_eq!(codes(&mut client, &member), UNKNOWN_MEMBER);
    let unknown = commit_request("unknown", 1).with_generation_id_or_member_epoch(4).with_member_id(text("gone"));
    assert_eq!(codes(&mut client, &unknown), ResponseError::IllegalGeneration.code());
    // A client of Kafka's may commit any offset, as in Kafka.
    assert_eq!(codes(&mut client, &commit_request("g", 1_000)), 0);
    assert_eq!(committed(&mut client, "g"), 1_000);
    // Offsets survive a restart.
    server.kill();
    server.restart();
    assert_eq!(committed(&mut Client::to(server.kafka()), "g"), 1_000);
}

#[test]
fn the_broker_assigns_partitions_to_members_that_send_heartbeats() {
    let (server, _data) = started();
    server.run(&["topic", "create", "t", "--partitions", "4"]).ok();
    let mut first = Beating::of(server.kafka(), "g", "first");
    assert_eq!((first.beat().error_code, first.partitions()), (0, vec![0, 1, 2, 3]));
    let mut second = Beating::of(server.kafka(), "g", "second");
    // Nothing is free yet: the first member gives two partitions back, and then the second one gets them.
    assert_eq!((second.beat().error_code, second.partitions()), (0, vec![]));
    let before = first.epoch;
    assert_eq!((first.beat().error_code, first.partitions().len(), first.epoch), (0, 2, before));
    // A commit of the epoch that the member knows is fine all the while.
    assert_eq!(first.commit(first.epoch), 0);
    assert_eq!(first.beat().error_code, 0);
    assert!(first.epoch > before);
    assert_eq!((second.beat().error_code, second.partitions().len()), (0, 2));
    assert_eq!(first.commit(before), ResponseError::StaleMemberEpoch.code());
    // gRPC shows the same group, and its consumers are members like these.
    let described = server.run(&["group", "describe", "g"]).ok();
    assert!(described.contains("first") && described.contains("second"), "{described}");
    let consumer = Running::start(&server, &["consume", "t", "--group", "g"]);
    wait_until("a partition moves to the consumer over gRPC", || {
        first.beat();
        second.beat();
        first.partitions().len() + second.partitions().len() == 3
    });
    drop(consumer);
    wait_until("the partition is back", || {
        first.beat();
        second.beat();
        first.partitions().len() + second.partitions().len() == 4
    });
    assert_eq!(second.leave(-1), 0);
    wait_until("the first member has all", || {
        first.beat();
        first.partitions() == [0, 1, 2, 3]
    });
    // Members of other kinds, epochs and assignors are refused.
    let classic: JoinGroupResponse = first.client.call(9, &Member::of(server.kafka(), "g").join_request());
    assert_eq!(classic.error_code, ResponseError::InconsistentGroupProtocol.code());
    let old = heartbeat_request("g", text("first"), first.epoch + 3);
    assert_eq!(first.client.call(1, &old).error_code, ResponseError::FencedMemberEpoch.code());
    let other = heartbeat_request("g", text("other"), 0).with_server_assignor(Some(text("mine")));
    assert_eq!(first.client.call(1, &other).error_code, ResponseError::UnsupportedAssignor.code());
    let pattern = heartbeat_request("g", text("other"), 0).with_subscribed_topic_regex(Some(text("(")));
    assert_eq!(first.client.call(1, &pattern).error_code, ResponseError::InvalidRegularExpression.code());
}

#[test]
fn static_members_and_patterns_work_with_heartbeats() {
    let (server, _data) = started();
    server.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    let mut first = Beating::of(server.kafka(), "g", "first");
    first.instance = Some(text("one"));
    assert_eq!((first.beat().error_code, first.partitions()), (0, vec![0, 1]));
    let epoch = first.epoch;
    // While it is there, nobody else has its static id.
    let mut returned = Beating::of(server.kafka(), "g", "returned");
    returned.instance = Some(text("one"));
    assert_eq!(returned.beat().error_code, ResponseError::UnreleasedInstanceId.code());
    // It leaves in order to return, and returns with another id.
    assert_eq!(first.leave(-2), 0);
    assert_eq!((returned.beat().error_code, returned.partitions(), returned.epoch), (0, vec![0, 1], epoch));
    assert_eq!(first.beat().error_code, ResponseError::FencedInstanceId.code());

    // A pattern also takes topics that are created later.
    let mut reader = Beating::of(server.kafka(), "h", "reader");
    let request = || {
        heartbeat_request("h", text("reader"), 0)
            .with_subscribed_topic_names(None)
            .with_subscribed_topic_regex(Some(text("log-.*")))
    };
    let joined = reader.send(request());
    assert_eq!((joined.error_code, reader.partitions()), (0, vec![]));
    server.run(&["topic", "create", "log-a"]).ok();
    server.run(&["topic", "create", "my-log-a"]).ok();
    let epoch = reader.epoch;
    reader.send(request().with_member_epoch(epoch));
    assert_eq!(reader.partitions(), [0]);
}
