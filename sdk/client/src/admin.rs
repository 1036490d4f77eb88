//! The admin client, with one method for each gRPC call.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use millstream_api::v1::admin_client::AdminClient;
use millstream_api::v1::groups_client::GroupsClient;
use millstream_api::v1::log_client::LogClient;
use millstream_api::v1::modules_client::ModulesClient;
use millstream_api::v1::pipelines_client::PipelinesClient;
use millstream_api::v1::state_client::StateClient;
use millstream_api::v1::topics_client::TopicsClient;
use millstream_api::{MESSAGE_BYTES_MAX, v1};
use tonic::{Response, Status};

use crate::client::{Channel, Client};
use crate::error::ClientError;
use crate::position::Position;

/// Size of the pieces in which a module is uploaded, in bytes.
const UPLOAD_CHUNK_BYTES: usize = 1 << 20;

/// Manages topics, groups, modules, pipelines and state, and makes single reads and writes. Cheap to clone.
///
/// # Errors
/// Every method returns [`ClientError::Refused`] if the server refuses the request, [`ClientError::Unavailable`] if no
/// server is reachable, and [`ClientError::CallTimeout`] if the server does not answer in time
/// (`ClientSettings::call_timeout_ms`). Each method documents only additional cases.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

impl Client {
    /// Returns a client for managing topics, groups, modules, pipelines and state, and for single reads and writes.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    // Topics

    /// Creates a topic with 1 to 10,000 partitions. The default is 1 partition.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        settings: v1::TopicSettings,
    ) -> Result<v1::Topic, ClientError> {
        let request = v1::CreateTopicRequest { name: name.to_owned(), partitions, settings: Some(settings) };
        let answer = self.answer("CreateTopic", self.topics().create_topic(request)).await?;
        self.field(answer.topic, "topic")
    }

    /// Returns all topics, including the repartition topics of pipelines.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        Ok(self.answer("ListTopics", self.topics().list_topics(v1::ListTopicsRequest {})).await?.topics)
    }

    /// Returns a topic and its partitions.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn describe_topic(&self, name: &str) -> Result<v1::DescribeTopicResponse, ClientError> {
        let request = v1::DescribeTopicRequest { name: name.to_owned() };
        self.answer("DescribeTopic", self.topics().describe_topic(request)).await
    }

    /// Changes the settings of a topic and adds partitions to it, all or nothing. The topic can be read and written
    /// meanwhile.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn alter_topic(&self, request: v1::AlterTopicRequest) -> Result<v1::Topic, ClientError> {
        let answer = self.answer("AlterTopic", self.topics().alter_topic(request)).await?;
        self.field(answer.topic, "topic")
    }

    /// Deletes a topic, its records, and the offsets that groups have committed for it.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = v1::DeleteTopicRequest { name: name.to_owned() };
        self.answer("DeleteTopic", self.topics().delete_topic(request)).await.map(drop)
    }

    // Log

    /// Returns the offsets at a position, for the given partitions or, if `partitions` is empty, for all of them.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: &[u32],
        at: Position,
    ) -> Result<Vec<v1::PartitionOffset>, ClientError> {
        Ok(self.topic_offsets(topic, partitions, at).await?.offsets)
    }

    /// As [`Admin::list_offsets`], together with the topic's UUID.
    pub(crate) async fn topic_offsets(
        &self,
        topic: &str,
        partitions: &[u32],
        at: Position,
    ) -> Result<v1::ListOffsetsResponse, ClientError> {
        let request = v1::ListOffsetsRequest {
            topic: topic.to_owned(),
            partitions: partitions.to_vec(),
            at: Some(v1::Position::from(at)),
        };
        self.answer("ListOffsets", self.log().list_offsets(request)).await
    }

    /// Reads once.
    ///
    /// # Errors
    /// See [`Admin`]. The error of a single partition is returned in that partition's part of the answer.
    pub async fn fetch(&self, request: v1::FetchRequest) -> Result<v1::FetchResponse, ClientError> {
        let after_ms = self.client.call_timeout_ms().saturating_add(request.max_wait_ms.into());
        self.answer_within(after_ms, "Fetch", self.log().fetch(request)).await
    }

    /// Writes once. The answer arrives when the records are on disk. Use a [`crate::Producer`] to write many records.
    ///
    /// # Errors
    /// See [`Admin`]. If the connection is lost, the records may nevertheless be stored.
    pub async fn produce(&self, request: v1::ProduceRequest) -> Result<v1::ProduceResponse, ClientError> {
        self.answer("Produce", self.log().produce(request)).await
    }

    // Groups

    /// Returns all groups, including those of pipelines.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn list_groups(&self) -> Result<Vec<v1::Group>, ClientError> {
        Ok(self.answer("ListGroups", self.groups().list_groups(v1::ListGroupsRequest {})).await?.groups)
    }

    /// Returns a group, its members, and its position in each partition.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn describe_group(&self, name: &str) -> Result<v1::DescribeGroupResponse, ClientError> {
        let request = v1::DescribeGroupRequest { name: name.to_owned() };
        self.answer("DescribeGroup", self.groups().describe_group(request)).await
    }

    /// Commits offsets for a group that has no members, and creates the group if it does not exist.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn commit_offsets(&self, group: &str, offsets: Vec<v1::TopicPartitionOffset>) -> Result<(), ClientError> {
        let request = v1::CommitOffsetsRequest { group: group.to_owned(), offsets };
        self.answer("CommitOffsets", self.groups().commit_offsets(request)).await.map(drop)
    }

    /// Sets a group's committed offsets and returns the new ones. With `dry_run`, nothing is changed and the new
    /// offsets are only returned. [`Position`] converts into the request's `to`.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn reset_group(
        &self,
        request: v1::ResetGroupRequest,
    ) -> Result<Vec<v1::TopicPartitionOffset>, ClientError> {
        Ok(self.answer("ResetGroup", self.groups().reset_group(request)).await?.offsets)
    }

    /// Deletes a group and its offsets.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn delete_group(&self, name: &str) -> Result<(), ClientError> {
        let request = v1::DeleteGroupRequest { name: name.to_owned() };
        self.answer("DeleteGroup", self.groups().delete_group(request)).await.map(drop)
    }

    // Server

    /// Returns a consistent snapshot of all data of the server, over a separate connection: first the approximate
    /// number of bytes, then the files in pieces, then the manifest. A stream that ends before the manifest is not a
    /// complete backup.
    ///
    /// # Errors
    /// See [`Admin`]. The stream may also end with an error.
    pub async fn backup(
        &self,
    ) -> Result<impl Stream<Item = Result<v1::BackupChunk, ClientError>> + Send + Unpin + use<>, ClientError> {
        let mut admin = AdminClient::new(self.client.own_channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let chunks = self.answer("Backup", admin.backup(v1::BackupRequest {})).await?;
        let client = self.client.clone();
        Ok(chunks.map_err(move |status| ClientError::from_status(client.server(), &status)))
    }

    // Modules

    /// Uploads a module as `name` or `name:tag`. The server compiles it before it answers.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn push_module(&self, reference: &str, bytes: Bytes) -> Result<v1::PushModuleResponse, ClientError> {
        use v1::push_module_request::Part;
        let starts = (0..bytes.len()).step_by(UPLOAD_CHUNK_BYTES);
        let chunks: Vec<Part> =
            starts.map(|start| Part::Bytes(bytes.slice(start..bytes.len().min(start + UPLOAD_CHUNK_BYTES)))).collect();
        let parts = std::iter::once(Part::Reference(reference.to_owned())).chain(chunks);
        let requests = stream::iter(parts.map(|part| v1::PushModuleRequest { part: Some(part) }));
        self.answer("PushModule", self.modules().push_module(requests)).await
    }

    /// Returns all modules.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn list_modules(&self) -> Result<Vec<v1::Module>, ClientError> {
        Ok(self.answer("ListModules", self.modules().list_modules(v1::ListModulesRequest {})).await?.modules)
    }

    /// Returns a module and the stages that use it.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn describe_module(&self, reference: &str) -> Result<v1::DescribeModuleResponse, ClientError> {
        let request = v1::DescribeModuleRequest { reference: reference.to_owned() };
        self.answer("DescribeModule", self.modules().describe_module(request)).await
    }

    /// Removes a module. The server refuses this while a pipeline uses the module.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn remove_module(&self, reference: &str) -> Result<(), ClientError> {
        let request = v1::RemoveModuleRequest { reference: reference.to_owned() };
        self.answer("RemoveModule", self.modules().remove_module(request)).await.map(drop)
    }

    // Pipelines

    /// Creates a pipeline or updates it to match its file.
    ///
    /// # Errors
    /// See [`Admin`]. If the file contains mistakes, the answer lists them and nothing is changed.
    pub async fn apply_pipeline(
        &self,
        request: v1::ApplyPipelineRequest,
    ) -> Result<v1::ApplyPipelineResponse, ClientError> {
        self.answer("ApplyPipeline", self.pipelines().apply_pipeline(request)).await
    }

    /// Returns all pipelines.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn list_pipelines(&self) -> Result<Vec<v1::Pipeline>, ClientError> {
        Ok(self.answer("ListPipelines", self.pipelines().list_pipelines(v1::ListPipelinesRequest {})).await?.pipelines)
    }

    /// Returns a pipeline, its file, its stages, and its position in each partition.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn describe_pipeline(&self, name: &str) -> Result<v1::DescribePipelineResponse, ClientError> {
        let request = v1::DescribePipelineRequest { name: name.to_owned() };
        self.answer("DescribePipeline", self.pipelines().describe_pipeline(request)).await
    }

    /// Stops a pipeline at a commit. [`Admin::resume_pipeline`] continues from there.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn pause_pipeline(&self, name: &str) -> Result<v1::Pipeline, ClientError> {
        let request = v1::PausePipelineRequest { name: name.to_owned() };
        let answer = self.answer("PausePipeline", self.pipelines().pause_pipeline(request)).await?;
        self.field(answer.pipeline, "pipeline")
    }

    /// Continues a pipeline that was paused or that stopped after a failure.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn resume_pipeline(&self, name: &str) -> Result<v1::Pipeline, ClientError> {
        let request = v1::ResumePipelineRequest { name: name.to_owned() };
        let answer = self.answer("ResumePipeline", self.pipelines().resume_pipeline(request)).await?;
        self.field(answer.pipeline, "pipeline")
    }

    /// Deletes a pipeline, its group, its state and its repartition topics.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn delete_pipeline(&self, name: &str) -> Result<(), ClientError> {
        let request = v1::DeletePipelineRequest { name: name.to_owned() };
        self.answer("DeletePipeline", self.pipelines().delete_pipeline(request)).await.map(drop)
    }

    // State

    /// Returns the state of one key, or `None` if the key has none. `stage` may be empty if the pipeline has exactly
    /// one aggregate stage.
    ///
    /// # Errors
    /// See [`Admin`].
    pub async fn get_state(
        &self,
        pipeline: &str,
        stage: &str,
        key: Bytes,
    ) -> Result<Option<v1::StateEntry>, ClientError> {
        let request = v1::GetStateRequest { pipeline: pipeline.to_owned(), stage: stage.to_owned(), key };
        Ok(self.answer("GetState", self.state().get_state(request)).await?.entry)
    }

    /// Returns the state of many keys, in no particular order.
    ///
    /// # Errors
    /// See [`Admin`]. The stream may also end with an error.
    pub async fn list_state(
        &self,
        request: v1::ListStateRequest,
    ) -> Result<impl Stream<Item = Result<v1::StateEntry, ClientError>> + Send + Unpin + use<>, ClientError> {
        let answers = self.answer("ListState", self.state().list_state(request)).await?;
        let server = self.client.server().to_owned();
        let entries = answers
            .map_ok(|answer| stream::iter(answer.entries.into_iter().map(Ok)))
            .try_flatten()
            .map(move |entry| entry.map_err(|status| ClientError::from_status(&server, &status)));
        Ok(entries.boxed())
    }

    fn topics(&self) -> TopicsClient<Channel> {
        TopicsClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn groups(&self) -> GroupsClient<Channel> {
        GroupsClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn modules(&self) -> ModulesClient<Channel> {
        ModulesClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn pipelines(&self) -> PipelinesClient<Channel> {
        PipelinesClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.client.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Waits for an answer for at most the call timeout.
    async fn answer<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        self.answer_within(self.client.call_timeout_ms(), call, answer).await
    }

    async fn answer_within<T>(
        &self,
        after_ms: u64,
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        let server = self.client.server();
        match tokio::time::timeout(Duration::from_millis(after_ms), answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(ClientError::from_status(server, &status)),
            Err(_) => Err(ClientError::CallTimeout { call, server: server.to_owned(), after_ms }),
        }
    }

    fn field<T>(&self, field: Option<T>, what: &str) -> Result<T, ClientError> {
        field.ok_or_else(|| ClientError::lacks(self.client.server(), what))
    }
}
