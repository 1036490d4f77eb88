//! `millstream.v1.Topics`.

use millstream_api::v1;
use millstream_api::v1::topics_server::Topics;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::name::TopicName;
use crate::topic::{Topic, TopicSettings};

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
        let settings = to_settings(request.settings.unwrap_or_default());
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
            }
        });
        let partition_list = partition_list.collect();
        Ok(Response::new(v1::DescribeTopicResponse { topic: Some(to_topic(&topic)), partition_list }))
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

fn to_settings(settings: v1::TopicSettings) -> TopicSettings {
    TopicSettings {
        retention_ms: settings.retention_ms,
        retention_bytes: settings.retention_bytes,
        batch_bytes_max: settings.batch_bytes_max.map(|bytes| bytes as usize),
    }
}

fn to_topic(topic: &Topic) -> v1::Topic {
    let meta = topic.meta();
    v1::Topic {
        name: topic.name().as_str().to_owned(),
        partitions: meta.partitions,
        settings: Some(v1::TopicSettings {
            retention_ms: meta.settings.retention_ms,
            retention_bytes: meta.settings.retention_bytes,
            batch_bytes_max: meta.settings.batch_bytes_max.and_then(|bytes| u32::try_from(bytes).ok()),
        }),
        internal: meta.internal,
        records: topic.partitions().iter().map(|p| p.end().since(p.start())).sum(),
        bytes: topic.partitions().iter().map(|p| p.size().bytes).sum(),
        created_at_ms: meta.created_at_ms,
    }
}
