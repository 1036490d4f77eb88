//! Members of groups by Kafka's classic and consumer protocols, which do nothing by themselves.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::consumer_group_heartbeat_response;
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, ConsumerProtocolAssignment,
    ConsumerProtocolSubscription, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    OffsetCommitRequest, OffsetCommitResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

use crate::kafka_client::Client;

/// Returns a text as messages have it.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Returns the id of a group as messages have it.
pub fn group_id(id: &str) -> GroupId {
    text(id).into()
}

/// What a consumer says about itself: it subscribes to topic `t`.
pub fn subscription() -> Bytes {
    let mut bytes = BytesMut::from(&[0, 1][..]);
    ConsumerProtocolSubscription::default()
        .with_topics(vec![text("t")])
        .encode(&mut bytes, 1)
        .expect("it has what version 1 has");
    bytes.freeze()
}

/// Partition 0 of topic `t`.
pub fn assignment() -> Bytes {
    let mut bytes = BytesMut::from(&[0, 1][..]);
    let assigned = TopicPartition::default().with_topic(text("t").into()).with_partitions(vec![0]);
    ConsumerProtocolAssignment::default()
        .with_assigned_partitions(vec![assigned])
        .encode(&mut bytes, 1)
        .expect("it has what version 1 has");
    bytes.freeze()
}

/// A member of a group, over a connection of its own. Its calls panic in the same cases as those of [`Client`].
#[derive(Debug)]
pub struct Member {
    /// Its connection.
    pub client: Client,
    /// The id of its group.
    pub group: String,
    /// Its id, which the server gives it.
    pub id: StrBytes,
    /// Its own name, if it is a static member.
    pub instance: Option<StrBytes>,
    /// The assignors that it knows.
    pub protocols: Vec<&'static str>,
    /// How long the server waits for a sign of it, in milliseconds.
    pub session_ms: i32,
    /// The generation that it is in, or -1.
    pub generation: i32,
    /// The member that makes the assignment of this generation.
    pub leader: StrBytes,
}

impl Member {
    /// Connects to the address of a server. The member joins `group` later.
    pub fn of(address: &str, group: &str) -> Self {
        Self {
            client: Client::to(address),
            group: group.to_owned(),
            id: StrBytes::default(),
            instance: None,
            protocols: vec!["range"],
            session_ms: 30_000,
            generation: -1,
            leader: StrBytes::default(),
        }
    }

    /// Makes it a static member.
    #[must_use]
    pub fn with_instance(mut self, instance: &str) -> Self {
        self.instance = Some(text(instance));
        self
    }

    /// Returns its request to join.
    pub fn join_request(&self) -> JoinGroupRequest {
        let protocol =
            |name: &&str| JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(subscription());
        JoinGroupRequest::default()
            .with_group_id(group_id(&self.group))
            .with_session_timeout_ms(self.session_ms)
            .with_rebalance_timeout_ms(20_000)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(text("consumer"))
            .with_protocols(self.protocols.iter().map(protocol).collect())
    }

    /// Sends a request to join. [`Self::joined`] receives the answer.
    pub fn send_join(&mut self) {
        if self.id.is_empty() && self.instance.is_none() {
            let given: JoinGroupResponse = self.client.call(9, &self.join_request());
            assert_eq!(given.error_code, ResponseError::MemberIdRequired.code());
            self.id = given.member_id;
        }
        let request = self.join_request();
        self.client.send(9, 9, &request);
    }

    /// Receives the answer to its request to join, and takes over what it is told.
    pub fn joined(&mut self) -> JoinGroupResponse {
        let joined: JoinGroupResponse = self.client.answer(9, 9);
        if joined.error_code == 0 {
            (self.id, self.generation, self.leader) =
                (joined.member_id.clone(), joined.generation_id, joined.leader.clone());
        }
        joined
    }

    /// Joins, and waits for the answer.
    pub fn join(&mut self) -> JoinGroupResponse {
        self.send_join();
        self.joined()
    }

    /// Returns whether it makes the assignment.
    pub fn leads(&self) -> bool {
        self.leader == self.id
    }

    /// Sends a request for the assignment. The leader assigns each of `members` its own id.
    pub fn send_sync(&mut self, members: &[StrBytes]) {
        let assignments = members.iter().map(|member| {
            let assignment = if member.is_empty() { Bytes::new() } else { assignment() };
            SyncGroupRequestAssignment::default().with_member_id(member.clone()).with_assignment(assignment)
        });
        let request = SyncGroupRequest::default()
            .with_group_id(group_id(&self.group))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text(self.protocols[0])))
            .with_assignments(assignments.collect());
        self.client.send(5, 5, &request);
    }

    /// Receives its assignment.
    pub fn synced(&mut self) -> SyncGroupResponse {
        self.client.answer(5, 5)
    }

    /// Asks for its assignment, and waits for the answer.
    pub fn sync(&mut self, members: &[StrBytes]) -> SyncGroupResponse {
        self.send_sync(members);
        self.synced()
    }

    /// Sends a heartbeat. Returns the code of the answer.
    pub fn heartbeat(&mut self) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(group_id(&self.group))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone());
        self.client.call(4, &request).error_code
    }

    /// Sends heartbeats until one is answered with this code.
    pub fn beat_until(&mut self, code: i16) {
        for _ in 0..2_000 {
            if self.heartbeat() == code {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no heartbeat was answered with {code}");
    }

    /// Leaves the group. Returns the code of the answer.
    pub fn leave(&mut self) -> i16 {
        let member = MemberIdentity::default().with_member_id(self.id.clone());
        let member = member.with_group_instance_id(self.instance.clone());
        let request = LeaveGroupRequest::default().with_group_id(group_id(&self.group)).with_members(vec![member]);
        self.client.call(5, &request).members[0].error_code
    }

    /// Commits an offset of partition 0 of topic `t`. Returns the code of the answer.
    pub fn commit(&mut self, offset: i64) -> i16 {
        self.send_commit(offset);
        self.committed()
    }

    /// Sends a request to commit an offset of partition 0 of topic `t`. [`Self::committed`] receives the answer.
    pub fn send_commit(&mut self, offset: i64) {
        let request = commit_request(&self.group, offset)
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone());
        self.client.send(8, 8, &request);
    }

    /// Receives the answer to a commit, and returns its code.
    pub fn committed(&mut self) -> i16 {
        self.client.answer::<OffsetCommitResponse>(8, 8).topics[0].partitions[0].error_code
    }
}

/// Joins members at once, and gives each of them an assignment.
pub fn join_all(members: &mut [Member]) {
    members.iter_mut().for_each(Member::send_join);
    assign_all(members);
}

/// Waits until members that join have joined, and gives each of them an assignment.
pub fn assign_all(members: &mut [Member]) {
    let joined: Vec<_> = members.iter_mut().map(Member::joined).collect();
    assert!(joined.iter().all(|joined| joined.error_code == 0), "{joined:?}");
    let ids: Vec<_> = members.iter().map(|member| member.id.clone()).collect();
    for member in members.iter_mut() {
        let assigned = if member.leads() { &ids[..] } else { &[] };
        member.send_sync(assigned);
    }
    for member in members {
        let synced = member.synced();
        assert_eq!((synced.error_code, synced.assignment), (0, assignment()));
    }
}

/// Returns a request to commit an offset of partition 0 of topic `t`, by nobody in particular.
pub fn commit_request(group: &str, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text("note")));
    let of_topic = OffsetCommitRequestTopic::default().with_name(text("t").into()).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group_id(group))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![of_topic])
}

/// A heartbeat of a member that reads topic `t`.
pub fn heartbeat_request(group: &str, member: StrBytes, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member)
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(20_000)
        .with_subscribed_topic_names(Some(vec![text("t").into()]))
        .with_topic_partitions(Some(Vec::new()))
}

/// A member of the consumer protocol, and what it has.
#[derive(Debug)]
pub struct Beating {
    /// Its connection.
    pub client: Client,
    /// The id of its group.
    pub group: &'static str,
    /// Its id.
    pub id: StrBytes,
    /// Its own name, if it is a static member.
    pub instance: Option<StrBytes>,
    /// Its epoch, or 0 before it has joined.
    pub epoch: i32,
    owned: Vec<TopicPartitions>,
}

impl Beating {
    /// Connects to the address of a server. The member joins with its first heartbeat.
    pub fn of(address: &str, group: &'static str, id: &str) -> Self {
        Self { client: Client::to(address), group, id: text(id), instance: None, epoch: 0, owned: Vec::new() }
    }

    /// Sends a heartbeat, and takes over what it is told.
    pub fn beat(&mut self) -> ConsumerGroupHeartbeatResponse {
        let request = heartbeat_request(self.group, self.id.clone(), self.epoch);
        self.send(request)
    }

    /// Sends a heartbeat, and takes over what it is told: it gives partitions back with the next one.
    pub fn send(&mut self, request: ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
        let request = request.with_instance_id(self.instance.clone()).with_topic_partitions(Some(self.owned.clone()));
        let answer = self.client.call(1, &request);
        if answer.error_code == 0 {
            self.epoch = answer.member_epoch;
            if let Some(assignment) = &answer.assignment {
                let owned = |of: &consumer_group_heartbeat_response::TopicPartitions| {
                    TopicPartitions::default().with_topic_id(of.topic_id).with_partitions(of.partitions.clone())
                };
                self.owned = assignment.topic_partitions.iter().map(owned).collect();
            }
        }
        answer
    }

    /// Returns the numbers of the partitions that it owns.
    pub fn partitions(&self) -> Vec<i32> {
        let mut partitions: Vec<i32> = self.owned.iter().flat_map(|of| of.partitions.clone()).collect();
        partitions.sort_unstable();
        partitions
    }

    /// Leaves the group with this epoch. Returns the code of the answer.
    pub fn leave(&mut self, epoch: i32) -> i16 {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group_id(self.group))
            .with_member_id(self.id.clone())
            .with_instance_id(self.instance.clone())
            .with_member_epoch(epoch);
        self.client.call(1, &request).error_code
    }

    /// Commits an offset with this epoch. Returns the code of the answer.
    pub fn commit(&mut self, epoch: i32) -> i16 {
        let request =
            commit_request(self.group, 1).with_generation_id_or_member_epoch(epoch).with_member_id(self.id.clone());
        self.client.call(9, &request).topics[0].partitions[0].error_code
    }
}
