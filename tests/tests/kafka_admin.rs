//! The administration of topics over Kafka's protocol: creating, altering, describing and deleting them.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::incremental_alter_configs_request;
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::{
    AlterConfigsRequest, BrokerId, CreateAclsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteAclsRequest,
    DeleteRecordsRequest, DeleteTopicsRequest, DescribeAclsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    DescribeLogDirsRequest, DescribeTopicPartitionsRequest, IncrementalAlterConfigsRequest, ListConfigResourcesRequest,
    OffsetForLeaderEpochRequest, SaslHandshakeRequest, TopicName,
};
use kafka_protocol::protocol::Request;
use millstream_tests::kafka_client::Client;
use millstream_tests::kafka_member::{heartbeat_request, text};
use millstream_tests::server::Server;

use crate::kafka::{batch, create, fetch_request, list_request, produce_request, started, topic, values};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

fn name(name: &str) -> TopicName {
    text(name).into()
}

fn new_topic(topic: &str, partitions: i32, configs: &[(&str, &str)]) -> CreatableTopic {
    let config = |(name, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
    };
    CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(partitions)
        .with_replication_factor(-1)
        .with_configs(configs.iter().map(config).collect())
}

/// Creates a topic, and returns the error code.
fn create_topic(client: &mut Client, topic: CreatableTopic) -> i16 {
    client.call(7, &CreateTopicsRequest::default().with_topics(vec![topic])).topics[0].error_code
}

fn configs(client: &mut Client, kind: i8, resource: &str) -> BTreeMap<String, (String, i8)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configuration_keys(None);
    let mut answer = client.call(4, &DescribeConfigsRequest::default().with_resources(vec![resource])).results;
    let answer = answer.remove(0);
    assert_eq!(answer.error_code, 0, "{answer:?}");
    let config = |config: &kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult| {
        (config.name.to_string(), (config.value.clone().unwrap().to_string(), config.config_source))
    };
    answer.configs.iter().map(config).collect()
}

/// Changes one setting of a topic, and returns the error code.
fn alter(client: &mut Client, topic: &str, setting: &str, operation: i8, value: &str) -> i16 {
    use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config = AlterableConfig::default()
        .with_name(text(setting))
        .with_config_operation(operation)
        .with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    client.call(1, &IncrementalAlterConfigsRequest::default().with_resources(vec![resource])).responses[0].error_code
}

/// Asks one version of an API of administration, and checks the answer. `unique` is a name that no other call has.
pub(crate) fn answers(client: &mut Client, key: i16, version: i16, unique: &str) {
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    match key {
        SaslHandshakeRequest::KEY => {
            let answer = client.call(version, &SaslHandshakeRequest::default().with_mechanism(text("PLAIN")));
            assert_eq!(answer.error_code, ResponseError::IllegalSaslState.code());
        }
        CreateTopicsRequest::KEY => {
            let topics = vec![new_topic(unique, if version < 4 { 1 } else { -1 }, &[]), new_topic("t", 1, &[])];
            create(client, "t");
            let topics = topics.into_iter().map(|topic| topic.with_replication_factor(1)).collect();
            let created = client.call(version, &CreateTopicsRequest::default().with_topics(topics)).topics;
            let codes: Vec<_> = created.iter().map(|topic| topic.error_code).collect();
            assert_eq!(codes, [0, ResponseError::TopicAlreadyExists.code()]);
            if version >= 7 {
                assert_eq!((created[0].num_partitions, created[0].replication_factor), (1, 1));
                assert!(!created[0].topic_id.is_nil() && created[0].configs.as_ref().unwrap().len() > 20);
            }
        }
        DeleteTopicsRequest::KEY => {
            let created = CreateTopicsRequest::default().with_topics(vec![new_topic(unique, 1, &[])]);
            let uuid = client.call(7, &created).topics[0].topic_id;
            let request = if version < 6 {
                DeleteTopicsRequest::default().with_topic_names(vec![name(unique), name("missing")])
            } else {
                let by_uuid = DeleteTopicState::default().with_name(None).with_topic_id(uuid);
                let missing = DeleteTopicState::default().with_name(Some(name("missing")));
                DeleteTopicsRequest::default().with_topics(vec![by_uuid, missing])
            };
            let deleted = client.call(version, &request).responses;
            let codes: Vec<_> = deleted.iter().map(|topic| topic.error_code).collect();
            assert_eq!((codes, deleted[0].name.as_deref()), (vec![0, unknown], Some(&text(unique))));
        }
        DeleteRecordsRequest::KEY => {
            create(client, "d");
            client.call(9, &produce_request("d", 0, batch(0, "v")));
            let partition = DeleteRecordsPartition::default().with_offset(1);
            let missing = DeleteRecordsPartition::default().with_partition_index(9);
            let topics = DeleteRecordsTopic::default().with_name(topic("d")).with_partitions(vec![partition, missing]);
            let answer = client.call(version, &DeleteRecordsRequest::default().with_topics(vec![topics]));
            let deleted = &answer.topics[0].partitions;
            assert_eq!((deleted[0].error_code, deleted[1].error_code), (0, unknown));
            assert!(deleted[0].low_watermark >= 1);
        }
        OffsetForLeaderEpochRequest::KEY => {
            create(client, "t");
            let wanted = |epoch: i32| {
                let partition = OffsetForLeaderPartition::default().with_leader_epoch(epoch);
                let of_topic = OffsetForLeaderTopic::default().with_topic(topic("t")).with_partitions(vec![partition]);
                OffsetForLeaderEpochRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![of_topic])
            };
            let end = client.call(5, &list_request("t", -1)).topics[0].partitions[0].offset;
            let found = client.call(version, &wanted(0)).topics[0].partitions[0].clone();
            assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, 0, end));
            let found = client.call(version, &wanted(3)).topics[0].partitions[0].clone();
            assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, -1, -1));
        }
        DescribeAclsRequest::KEY => {
            let request = DescribeAclsRequest::default().with_resource_type_filter(1).with_operation(1);
            let answer = client.call(version, &request.with_permission_type(1).with_pattern_type_filter(1));
            assert_eq!(answer.error_code, ResponseError::SecurityDisabled.code());
        }
        CreateAclsRequest::KEY => {
            let creation = kafka_protocol::messages::create_acls_request::AclCreation::default();
            let request = CreateAclsRequest::default().with_creations(vec![creation]);
            assert_eq!(client.call(version, &request).results[0].error_code, ResponseError::SecurityDisabled.code());
        }
        DeleteAclsRequest::KEY => {
            let filter = kafka_protocol::messages::delete_acls_request::DeleteAclsFilter::default();
            let request = DeleteAclsRequest::default().with_filters(vec![filter]);
            let answer = client.call(version, &request);
            assert_eq!(answer.filter_results[0].error_code, ResponseError::SecurityDisabled.code());
        }
        DescribeConfigsRequest::KEY => {
            create(client, "t");
            let resource = |kind: i8, name: &str| {
                DescribeConfigsResource::default()
                    .with_resource_type(kind)
                    .with_resource_name(text(name))
                    .with_configuration_keys(Some(vec![text("cleanup.policy"), text("num.partitions")]))
            };
            let resources = vec![resource(TOPIC, "t"), resource(BROKER, "0"), resource(TOPIC, "missing")];
            let request = DescribeConfigsRequest::default().with_resources(resources).with_include_synonyms(true);
            let answer = client.call(version, &request).results;
            let config = &answer[0].configs[0];
            assert_eq!((answer[0].configs.len(), config.value.as_deref()), (1, Some("delete")));
            assert!(config.config_source == 5 && config.synonyms.len() == 1);
            assert_eq!(answer[1].configs[0].value.as_deref(), Some("1"));
            assert_eq!(answer[2].error_code, unknown);
        }
        AlterConfigsRequest::KEY => {
            create_topic(client, new_topic(unique, 1, &[("retention.ms", "5000"), ("segment.bytes", "9999999")]));
            let config = AlterableConfig::default().with_name(text("max.message.bytes")).with_value(Some(text("2000")));
            let resource = AlterConfigsResource::default()
                .with_resource_type(TOPIC)
                .with_resource_name(text(unique))
                .with_configs(vec![config]);
            let request = AlterConfigsRequest::default().with_resources(vec![resource]);
            assert_eq!(client.call(version, &request).responses[0].error_code, 0);
            let found = configs(client, TOPIC, unique);
            assert_eq!((&*found["max.message.bytes"].0, &*found["retention.ms"].0), ("2000", "-1"));
            assert_eq!(found["segment.bytes"], ("1073741824".to_owned(), 5));
        }
        DescribeLogDirsRequest::KEY => {
            create(client, "t");
            let answer = client.call(version, &DescribeLogDirsRequest::default().with_topics(None));
            let dir = &answer.results[0];
            assert!(dir.topics.iter().any(|topic| &*topic.name == "t" && topic.partitions.len() == 1), "{answer:?}");
            if version >= 4 {
                assert!(dir.total_bytes > dir.usable_bytes && dir.usable_bytes > 0);
            }
        }
        CreatePartitionsRequest::KEY => {
            create_topic(client, new_topic(unique, 2, &[]));
            let to = |count: i32| {
                let topics = CreatePartitionsTopic::default().with_name(name(unique)).with_count(count);
                let topics = topics.with_assignments(None);
                CreatePartitionsRequest::default().with_topics(vec![topics])
            };
            assert_eq!(client.call(version, &to(3)).results[0].error_code, 0);
            assert_eq!(client.call(version, &to(3)).results[0].error_code, ResponseError::InvalidPartitions.code());
        }
        IncrementalAlterConfigsRequest::KEY => {
            use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
            create_topic(client, new_topic(unique, 1, &[("retention.ms", "5000")]));
            let config = AlterableConfig::default().with_name(text("retention.bytes")).with_value(Some(text("-1")));
            let resource = AlterConfigsResource::default()
                .with_resource_type(TOPIC)
                .with_resource_name(text(unique))
                .with_configs(vec![config]);
            let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
            assert_eq!(client.call(version, &request).responses[0].error_code, 0);
            assert_eq!(configs(client, TOPIC, unique)["retention.ms"], ("5000".to_owned(), 1));
        }
        DescribeClusterRequest::KEY => {
            let request = DescribeClusterRequest::default().with_include_cluster_authorized_operations(true);
            let answer = client.call(version, &request);
            assert_eq!((answer.error_code, answer.controller_id.0, answer.brokers.len()), (0, 0, 1));
            assert!(!answer.cluster_id.is_empty() && answer.cluster_authorized_operations > 0);
        }
        ListConfigResourcesRequest::KEY => {
            create(client, "t");
            let answer = client.call(version, &ListConfigResourcesRequest::default());
            let listed = answer.config_resources.iter().any(|resource| &*resource.resource_name == "t");
            assert_eq!((answer.error_code, listed), (0, version > 0));
        }
        DescribeTopicPartitionsRequest::KEY => {
            create_topic(client, new_topic("p", 5, &[]));
            create_topic(client, new_topic("q", 2, &[]));
            let named = |name: &str| TopicRequest::default().with_name(text(name).into());
            let wanted = DescribeTopicPartitionsRequest::default()
                .with_topics(vec![named("q"), named("missing"), named("p")])
                .with_response_partition_limit(4);
            let first = client.call(version, &wanted);
            let cursor = first.next_cursor.unwrap();
            assert_eq!((first.topics[0].error_code, first.topics[1].partitions.len()), (unknown, 4));
            assert_eq!((&**cursor.topic_name, cursor.partition_index), ("p", 4));
            let cursor = Cursor::default().with_topic_name(cursor.topic_name).with_partition_index(4);
            let second = client.call(version, &wanted.with_cursor(Some(cursor)));
            let counts: Vec<_> = second.topics.iter().map(|topic| topic.partitions.len()).collect();
            assert_eq!((counts, second.next_cursor.is_none()), (vec![1, 2], true));
        }
        other => crate::kafka_groups::answers(client, other, version, unique),
    }
}

#[test]
fn topic_settings_map_to_kafkas_both_ways() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let settings = [
        ("cleanup.policy", "delete,compact"),
        ("retention.ms", "3600000"),
        ("max.message.bytes", "500000"),
        ("message.timestamp.after.max.ms", "1000"),
        ("segment.bytes", "52428800"),
        ("min.insync.replicas", "1"),
    ];
    assert_eq!(create_topic(&mut client, new_topic("t", 3, &settings)), 0);
    let found = configs(&mut client, TOPIC, "t");
    assert_eq!(found["cleanup.policy"], ("compact,delete".to_owned(), 1));
    assert_eq!(found["retention.ms"], ("3600000".to_owned(), 1));
    assert_eq!(found["segment.bytes"], ("52428800".to_owned(), 1));
    assert_eq!(found["retention.bytes"], ("-1".to_owned(), 5));
    let described = server.run(&["topic", "describe", "t"]).ok();
    assert!(described.contains("compact,delete") && described.contains("1 h"), "{described}");

    // And the other way round.
    server.run(&["topic", "alter", "t", "--retention", "2h"]).ok();
    assert_eq!(configs(&mut client, TOPIC, "t")["retention.ms"].0, "7200000");
    assert_eq!(alter(&mut client, "t", "retention.ms", DELETE, ""), 0);
    assert_eq!(configs(&mut client, TOPIC, "t")["retention.ms"], ("-1".to_owned(), 5));
    assert_eq!(alter(&mut client, "t", "cleanup.policy", SUBTRACT, "compact"), 0);
    assert_eq!(configs(&mut client, TOPIC, "t")["cleanup.policy"].0, "delete");
    assert_eq!(alter(&mut client, "t", "cleanup.policy", APPEND, "compact"), 0);
    assert_eq!(configs(&mut client, TOPIC, "t")["cleanup.policy"].0, "compact,delete");

    // What is unknown, impossible or cannot be honoured is refused, and changes nothing.
    let invalid = ResponseError::InvalidConfig.code();
    for (setting, operation, value) in [
        ("no.such.setting", SET, "1"),
        ("retention.ms", SET, "soon"),
        ("retention.ms", SET, "-5"),
        ("retention.ms", APPEND, "1"),
        ("cleanup.policy", SET, "shred"),
        ("compression.type", SET, "brotli"),
        ("min.insync.replicas", SET, "2"),
        ("max.message.bytes", SET, "99999999"),
        ("preallocate", SET, "maybe"),
    ] {
        assert_eq!(alter(&mut client, "t", setting, operation, value), invalid, "{setting} {value}");
    }
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(alter(&mut client, "missing", "retention.ms", SET, "5000"), unknown);
    assert_eq!(configs(&mut client, TOPIC, "t")["segment.bytes"].0, "52428800");
    assert_eq!(configs(&mut client, BROKER, "0")["auto.create.topics.enable"].0, "true");
}

#[test]
fn what_cannot_be_created_is_refused_with_kafkas_codes() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    let plain = || new_topic("t", 1, &[]);
    let assigned = |broker: i32| {
        let assignment = CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(broker)]);
        new_topic("t", -1, &[]).with_assignments(vec![assignment])
    };
    for (topic, code) in [
        (plain().with_replication_factor(3), ResponseError::InvalidReplicationFactor),
        (plain().with_num_partitions(0), ResponseError::InvalidPartitions),
        (plain().with_num_partitions(2_000_000), ResponseError::InvalidPartitions),
        (plain().with_name(name("not a name")), ResponseError::InvalidTopicException),
        (new_topic("t", 1, &[("nonsense", "1")]), ResponseError::InvalidConfig),
        (assigned(7), ResponseError::InvalidReplicaAssignment),
    ] {
        assert_eq!(create_topic(&mut client, topic), code.code());
    }
    let twice = CreateTopicsRequest::default().with_topics(vec![plain(), plain()]);
    let codes: Vec<_> = client.call(7, &twice).topics.iter().map(|topic| topic.error_code).collect();
    assert_eq!(codes, [ResponseError::InvalidRequest.code(); 2]);
    // A check alone creates nothing.
    let check = CreateTopicsRequest::default().with_topics(vec![plain()]).with_validate_only(true);
    assert_eq!(client.call(7, &check).topics[0].error_code, 0);
    assert_eq!(create_topic(&mut client, assigned(0)), 0);
    assert_eq!(server.run(&["topic", "describe", "t"]).code, Some(0));
}

#[test]
fn deleted_records_stay_deleted() {
    let (mut server, _data) = started();
    let mut client = Client::to(server.kafka());
    create(&mut client, "t");
    for number in 0..10 {
        client.call(9, &produce_request("t", 0, batch(number, &number.to_string())));
    }
    let delete = |client: &mut Client, offset: i64| {
        let partition = DeleteRecordsPartition::default().with_offset(offset);
        let of_topic = DeleteRecordsTopic::default().with_name(topic("t")).with_partitions(vec![partition]);
        let mut answer = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![of_topic]));
        let partition = answer.topics.remove(0).partitions.remove(0);
        (partition.error_code, partition.low_watermark)
    };
    assert_eq!(delete(&mut client, 4), (0, 4));
    assert_eq!(delete(&mut client, 2), (0, 4));
    assert_eq!(delete(&mut client, 11), (ResponseError::OffsetOutOfRange.code(), -1));
    let start = |client: &mut Client| client.call(5, &list_request("t", -2)).topics[0].partitions[0].offset;
    let fetched = |client: &mut Client, from: i64| {
        client.call(12, &fetch_request("t", from)).responses.remove(0).partitions.remove(0)
    };
    assert_eq!(start(&mut client), 4);
    assert_eq!(fetched(&mut client, 3).error_code, ResponseError::OffsetOutOfRange.code());
    server.kill();
    server.restart();
    let mut client = Client::to(server.kafka());
    assert_eq!(start(&mut client), 4);
    assert_eq!(values(fetched(&mut client, 4).records.unwrap()), ["4", "5", "6", "7", "8", "9"]);
    assert_eq!(server.run(&["consume", "t", "--from", "earliest", "--max", "1"]).ok(), "4\n");
    assert_eq!(delete(&mut client, -1), (0, 10));
    // Records of a compacted topic are deleted by their keys.
    create_topic(&mut client, new_topic("c", 1, &[("cleanup.policy", "compact")]));
    let of_topic =
        DeleteRecordsTopic::default().with_name(topic("c")).with_partitions(vec![DeleteRecordsPartition::default()]);
    let refused = client.call(2, &DeleteRecordsRequest::default().with_topics(vec![of_topic]));
    assert_eq!(refused.topics[0].partitions[0].error_code, ResponseError::PolicyViolation.code());
}

#[test]
fn a_topic_may_give_records_the_time_of_their_arrival() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create_topic(&mut client, new_topic("t", 1, &[("message.timestamp.type", "LogAppendTime")]));
    let stored = client.call(9, &produce_request("t", 0, batch(7, "v"))).responses[0].partition_responses[0].clone();
    assert!(stored.error_code == 0 && stored.log_append_time_ms > 1_700_000_000_000, "{stored:?}");
    let consumed = server.run(&["consume", "t", "--from", "earliest", "--until-end", "--output", "json"]).ok();
    let record: serde_json::Value = serde_json::from_str(consumed.trim()).unwrap();
    assert_eq!(record["timestamp"], stored.log_append_time_ms, "{consumed}");
    let found = client.call(5, &list_request("t", stored.log_append_time_ms)).topics[0].partitions[0].offset;
    assert_eq!(found, 0);
}

#[test]
fn groups_have_settings_of_their_own() {
    use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    const GROUP: i8 = 32;
    let (mut server, _data) = started();
    let mut client = Client::to(server.kafka());
    let set = |client: &mut Client, name: &str, value: &str| {
        let config = AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)));
        let resource = AlterConfigsResource::default()
            .with_resource_type(GROUP)
            .with_resource_name(text("g"))
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        client.call(1, &request).responses[0].error_code
    };
    assert_eq!(set(&mut client, "consumer.heartbeat.interval.ms", "700"), 0);
    let invalid = ResponseError::InvalidConfig.code();
    assert_eq!(set(&mut client, "consumer.heartbeat.interval.ms", "often"), invalid);
    assert_eq!(set(&mut client, "nonsense", "1"), invalid);
    server.kill();
    server.restart();
    let mut client = Client::to(server.kafka());
    let found = configs(&mut client, GROUP, "g");
    assert_eq!(found["consumer.heartbeat.interval.ms"], ("700".to_owned(), 8));
    assert_eq!(found["consumer.session.timeout.ms"], ("45000".to_owned(), 5));
    create(&mut client, "t");
    let joined = client.call(1, &heartbeat_request("g", text("m"), 0));
    assert_eq!(joined.heartbeat_interval_ms, 700);
}

#[test]
fn a_topic_may_have_a_codec_of_its_own() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create_topic(&mut client, new_topic("t", 1, &[("compression.type", "zstd")]));
    client.call(9, &produce_request("t", 0, batch(7, "v")));
    let fetched = client.call(12, &fetch_request("t", 0)).responses.remove(0).partitions.remove(0).records.unwrap();
    let stored = millstream_record::RecordBatch::from_log(fetched.clone()).unwrap();
    assert_eq!((stored.compression(), values(fetched)), (millstream_record::Compression::Zstd, vec!["v".to_owned()]));
    assert_eq!(configs(&mut client, TOPIC, "t")["compression.type"], ("zstd".to_owned(), 1));
}

#[test]
fn records_without_a_key_are_named_where_a_topic_needs_keys() {
    let (server, _data) = started();
    let mut client = Client::to(server.kafka());
    create_topic(&mut client, new_topic("t", 1, &[("cleanup.policy", "compact")]));
    let mut builder = millstream_record::BatchBuilder::new(millstream_record::Compression::None);
    for key in [None, Some(&b"k"[..]), None] {
        builder.push(7, key, Some(b"v"), []);
    }
    let records = builder.finish().unwrap().into_bytes();
    let refused = client.call(9, &produce_request("t", 0, records)).responses.remove(0).partition_responses.remove(0);
    let indexes: Vec<_> = refused.record_errors.iter().map(|error| error.batch_index).collect();
    assert_eq!((refused.error_code, indexes), (ResponseError::InvalidRecord.code(), vec![0, 2]));
}

#[test]
fn the_cluster_keeps_its_id() {
    let (mut server, _data) = started();
    let id = |server: &Server| Client::to(server.kafka()).call(1, &DescribeClusterRequest::default()).cluster_id;
    let before = id(&server);
    server.kill();
    server.restart();
    assert_eq!(id(&server), before);
}
