//! The service `millstream.v1.Topics`.

use millstream_api::v1;
use millstream_api::v1::topics_server::Topics;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::log::topic::{Change, Cleanup, Topic, TopicAlteration, TopicSettings};
use crate::name::TopicName;

pub(super) struct Service {
    broker: Broker,
}

impl Service {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker }
    }
}

#[tonic::async_trait]
impl Topics for Service {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let name = TopicName::new(&request.name)?;
        let settings = to_settings(&request.settings.unwrap_or_default())?;
        settings.check_consistent()?;
        let topic = self.broker.create_topic(&name, request.partitions.unwrap_or(1), settings, false).await?;
        Ok(Response::new(v1::CreateTopicResponse { topic: Some(to_topic(&topic)) }))
    }

    async fn list_topics(&self, _: Request<v1::ListTopicsRequest>) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let topics = self.broker.topics().iter().map(|topic| to_topic(topic)).collect();
        Ok(Response::new(v1::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let topic = self.broker.topic(&request.into_inner().name)?;
        let partition_list = topic.partitions().iter().map(|partition| {
            let size = partition.size();
            v1::Partition {
                partition: partition.name().partition,
                log_start_offset: partition.start().into(),
                log_end_offset: partition.end().into(),
                bytes: size.bytes,
                max_timestamp_ms: size.max_timestamp_ms,
                segments: size.segments,
                first_timestamp_ms: size.first_timestamp_ms,
            }
        });
        let partition_list = partition_list.collect();
        Ok(Response::new(v1::DescribeTopicResponse { topic: Some(to_topic(&topic)), partition_list }))
    }

    async fn alter_topic(
        &self,
        request: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        let request = request.into_inner();
        let name = TopicName::new(&request.name)?;
        let alteration = to_alteration(&request)?;
        alteration.settings(&self.broker.topic(name.as_str())?.meta().settings).check_consistent()?;
        let topic = self.broker.alter_topic(&name, &alteration).await?;
        Ok(Response::new(v1::AlterTopicResponse { topic: Some(to_topic(&topic)) }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = TopicName::new(&request.into_inner().name)?;
        self.broker.delete_topic(&name).await?;
        Ok(Response::new(v1::DeleteTopicResponse {}))
    }
}

/// Converts the settings of a new topic. Fields that are absent get their defaults.
fn to_settings(settings: &v1::TopicSettings) -> Result<TopicSettings, BrokerError> {
    Ok(to_set(settings)?.settings(&TopicSettings::default()))
}

/// Converts settings to an alteration. Fields that are present are updated.
fn to_set(settings: &v1::TopicSettings) -> Result<TopicAlteration, BrokerError> {
    fn set<T>(value: Option<T>) -> Change<T> {
        value.map_or(Change::Keep, Change::Set)
    }
    Ok(TopicAlteration {
        cleanup: set(settings.cleanup.map(to_cleanup).transpose()?),
        retention_ms: set(settings.retention_ms),
        retention_bytes: set(settings.retention_bytes),
        delete_retention_ms: set(settings.delete_retention_ms),
        batch_bytes_max: set(settings.batch_bytes_max.map(|bytes| bytes as usize)),
        timestamp_before_max_ms: set(settings.timestamp_before_max_ms),
        timestamp_after_max_ms: set(settings.timestamp_after_max_ms),
        ..TopicAlteration::default()
    })
}

fn to_alteration(request: &v1::AlterTopicRequest) -> Result<TopicAlteration, BrokerError> {
    fn unset<T>(change: &mut Change<T>, name: &str) -> Result<(), BrokerError> {
        if matches!(change, Change::Set(_)) {
            let allowed = "the request also sets it: either set it or unset it".to_owned();
            return Err(BrokerError::InvalidArgument { what: "unset", value: name.to_owned(), allowed });
        }
        *change = Change::Unset;
        Ok(())
    }
    let mut alteration =
        TopicAlteration { partitions: request.partitions, ..to_set(&request.set.unwrap_or_default())? };
    for number in &request.unset {
        match v1::TopicSetting::try_from(*number) {
            Ok(v1::TopicSetting::RetentionMs) => unset(&mut alteration.retention_ms, "retention_ms")?,
            Ok(v1::TopicSetting::RetentionBytes) => unset(&mut alteration.retention_bytes, "retention_bytes")?,
            Ok(v1::TopicSetting::BatchBytesMax) => unset(&mut alteration.batch_bytes_max, "batch_bytes_max")?,
            Ok(v1::TopicSetting::Cleanup) => unset(&mut alteration.cleanup, "cleanup")?,
            Ok(v1::TopicSetting::DeleteRetentionMs) => {
                unset(&mut alteration.delete_retention_ms, "delete_retention_ms")?;
            }
            Ok(v1::TopicSetting::TimestampBeforeMaxMs) => {
                unset(&mut alteration.timestamp_before_max_ms, "timestamp_before_max_ms")?;
            }
            Ok(v1::TopicSetting::TimestampAfterMaxMs) => {
                unset(&mut alteration.timestamp_after_max_ms, "timestamp_after_max_ms")?;
            }
            Ok(v1::TopicSetting::Unspecified) | Err(_) => {
                let allowed = "it names no setting: use a value of TopicSetting".to_owned();
                return Err(BrokerError::InvalidArgument { what: "unset", value: number.to_string(), allowed });
            }
        }
    }
    Ok(alteration)
}

fn to_cleanup(number: i32) -> Result<Cleanup, BrokerError> {
    match v1::Cleanup::try_from(number) {
        Ok(v1::Cleanup::Delete) => Ok(Cleanup::Delete),
        Ok(v1::Cleanup::Compact) => Ok(Cleanup::Compact),
        Ok(v1::Cleanup::CompactAndDelete) => Ok(Cleanup::CompactAndDelete),
        Err(_) => {
            let allowed = "use CLEANUP_DELETE, CLEANUP_COMPACT or CLEANUP_COMPACT_AND_DELETE".to_owned();
            Err(BrokerError::InvalidArgument { what: "cleanup", value: number.to_string(), allowed })
        }
    }
}

fn from_cleanup(cleanup: Cleanup) -> v1::Cleanup {
    match cleanup {
        Cleanup::Delete => v1::Cleanup::Delete,
        Cleanup::Compact => v1::Cleanup::Compact,
        Cleanup::CompactAndDelete => v1::Cleanup::CompactAndDelete,
    }
}

fn to_topic(topic: &Topic) -> v1::Topic {
    let meta = topic.meta();
    let (mut bytes, mut segments) = (0, 0);
    for size in topic.partitions().iter().map(|partition| partition.size()) {
        bytes += size.bytes;
        segments += size.segments;
    }
    v1::Topic {
        name: topic.name().as_str().to_owned(),
        partitions: meta.partitions,
        settings: Some(v1::TopicSettings {
            retention_ms: meta.settings.retention_ms,
            retention_bytes: meta.settings.retention_bytes,
            batch_bytes_max: meta.settings.batch_bytes_max.and_then(|bytes| u32::try_from(bytes).ok()),
            cleanup: Some(from_cleanup(meta.settings.cleanup) as i32),
            delete_retention_ms: meta.settings.delete_retention_ms,
            timestamp_before_max_ms: meta.settings.timestamp_before_max_ms,
            timestamp_after_max_ms: meta.settings.timestamp_after_max_ms,
        }),
        internal: meta.internal,
        records: topic.partitions().iter().map(|p| p.end().since(p.start())).sum(),
        bytes,
        created_at_ms: meta.created_at_ms,
        topic_id: topic.uuid().to_string(),
        segments,
    }
}
