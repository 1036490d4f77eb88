//! ConsumerGroupDescribe (key 69): groups to whose members the broker assigns partitions, and those of pipelines (KIP-848).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::consumer_group_describe_response::{Assignment, DescribedGroup, Member, TopicPartitions};
use kafka_protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse};

use super::describe_groups::OPERATIONS;
use super::{Call, list_groups, text};
use crate::groups::heartbeats::ConsumerMember;
use crate::groups::{Group, GroupKind};
use crate::name::TopicPartition;

/// The first version that says by which protocol a member joined (KIP-1099), and the number of this one.
const MEMBER_TYPE_FROM: i16 = 1;
const CONSUMER: i8 = 1;

pub(super) async fn answer(call: &Call, request: ConsumerGroupDescribeRequest) -> ConsumerGroupDescribeResponse {
    let groups = request.group_ids.into_iter().map(|id| {
        let described = match call.broker().groups().get(&id) {
            Ok(group) if group.kind() == GroupKind::Pipeline || !group.members().consumer.is_empty() => {
                describe(call, &group)
            }
            Ok(_) => not_found(format!("group {} is not a consumer group", &*id)),
            Err(_) => not_found(format!("Group {} not found.", &*id)),
        };
        let described = described.with_group_id(id);
        if request.include_authorized_operations { described.with_authorized_operations(OPERATIONS) } else { described }
    });
    ConsumerGroupDescribeResponse::default().with_groups(groups.collect())
}

fn not_found(reason: String) -> DescribedGroup {
    DescribedGroup::default()
        .with_error_code(ResponseError::GroupIdNotFound.code())
        .with_error_message(Some(text(reason)))
        .with_group_state(text("Dead"))
}

fn describe(call: &Call, group: &Group) -> DescribedGroup {
    let (state, ..) = list_groups::described(group);
    let members = group.members();
    let epoch = i32::try_from(group.generation()).unwrap_or(i32::MAX);
    DescribedGroup::default()
        .with_group_state(text(state))
        .with_group_epoch(epoch)
        .with_assignment_epoch(epoch)
        .with_assignor_name(text(members.consumer.assignor().name()))
        .with_members(members.consumer.describe_members().into_iter().map(|member| to_member(call, member)).collect())
}

fn to_member(call: &Call, member: ConsumerMember) -> Member {
    let described = Member::default()
        .with_member_id(text(member.member))
        .with_instance_id(member.instance.as_deref().map(text))
        .with_member_epoch(i32::try_from(member.epoch).unwrap_or(i32::MAX))
        .with_client_id(text(member.client_id))
        .with_client_host(text(&*member.client_host))
        .with_subscribed_topic_names(member.topics.iter().map(|topic| text(topic.as_str()).into()).collect())
        .with_subscribed_topic_regex(member.pattern.map(text))
        .with_assignment(to_assignment(call, &member.owned))
        .with_target_assignment(to_assignment(call, &member.target));
    if call.version >= MEMBER_TYPE_FROM { described.with_member_type(CONSUMER) } else { described }
}

fn to_assignment(call: &Call, partitions: &[TopicPartition]) -> Assignment {
    let mut topics: Vec<TopicPartitions> = Vec::new();
    for TopicPartition { topic, partition } in partitions {
        if topics.last().is_none_or(|last| **last.topic_name != *topic.as_str()) {
            let uuid = call.broker().topic(topic.as_str()).map(|topic| topic.uuid()).unwrap_or_default();
            topics.push(TopicPartitions::default().with_topic_id(uuid).with_topic_name(text(topic.as_str()).into()));
        }
        if let Some(last) = topics.last_mut() {
            last.partitions.push(*partition as i32);
        }
    }
    Assignment::default().with_topic_partitions(topics)
}
