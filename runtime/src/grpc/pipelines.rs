//! The gRPC service `millstream.v1.Pipelines`.

use std::sync::Arc;

use millstream_api::v1;
use millstream_api::v1::pipelines_server::Pipelines;
use millstream_broker::grpc::groups::to_group_offset;
use tonic::{Request, Response, Status};

use crate::deploy::Stage;
use crate::error::RuntimeError;
use crate::host::StageKind;
use crate::runtime::{Pipeline, RunState, Runtime};

pub(super) struct Service {
    runtime: Runtime,
}

impl Service {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    fn to_pipeline(&self, pipeline: &Pipeline) -> v1::Pipeline {
        let spec = pipeline.spec();
        let (state, reason) = match pipeline.state() {
            RunState::Running => ("running", String::new()),
            RunState::Paused => ("paused", String::new()),
            RunState::Stopped(reason) => ("stopped", reason),
        };
        let offsets = self.runtime.broker().group_offsets(pipeline.group());
        v1::Pipeline {
            name: pipeline.name().to_owned(),
            state: state.to_owned(),
            reason,
            to: spec.outputs().into_iter().map(str::to_owned).collect(),
            from: spec.from.into_iter().map(|topic| topic.value).collect(),
            version: pipeline.version(),
            lag: offsets.iter().map(|offset| offset.lag).sum(),
            tasks: u32::try_from(pipeline.tasks()).unwrap_or(u32::MAX),
        }
    }

    fn to_stage(&self, stage: &Arc<Stage>) -> v1::Stage {
        let (settings, metrics) = (stage.settings(), stage.metrics());
        let keys = match stage.kind() {
            StageKind::Aggregate => {
                let partitions = self.runtime.broker().state().partitions(stage.store());
                partitions.iter().map(|(_, partition)| partition.len() as u64).sum()
            }
            StageKind::Filter | StageKind::Map => 0,
        };
        v1::Stage {
            name: settings.name.to_string(),
            kind: stage.kind().to_string(),
            module: settings.reference.clone(),
            module_hash: settings.module.hash().to_string(),
            on_failure: settings.on_failure.name().to_owned(),
            records_in: metrics.records_in.get(),
            records_out: metrics.records_out.get(),
            failures: metrics.failures.get(),
            keys,
        }
    }
}

#[tonic::async_trait]
impl Pipelines for Service {
    async fn apply_pipeline(
        &self,
        request: Request<v1::ApplyPipelineRequest>,
    ) -> Result<Response<v1::ApplyPipelineResponse>, Status> {
        let request = request.into_inner();
        let modules = request.modules.into_iter().collect();
        let response = match self.runtime.apply(&request.yaml, &modules, request.dry_run).await {
            Ok(applied) => v1::ApplyPipelineResponse {
                changes: applied.changes,
                mistakes: Vec::new(),
                pipeline: applied.pipeline.map(|pipeline| self.to_pipeline(&pipeline)),
            },
            Err(RuntimeError::Mistakes(mistakes)) => {
                let mistake =
                    |m: crate::pipeline::Mistake| v1::Mistake { line: m.line, column: m.column, message: m.message };
                let mistakes = mistakes.into_iter().map(mistake).collect();
                v1::ApplyPipelineResponse { mistakes, ..Default::default() }
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(response))
    }

    async fn list_pipelines(
        &self,
        _: Request<v1::ListPipelinesRequest>,
    ) -> Result<Response<v1::ListPipelinesResponse>, Status> {
        let pipelines = self.runtime.pipelines().iter().map(|pipeline| self.to_pipeline(pipeline)).collect();
        Ok(Response::new(v1::ListPipelinesResponse { pipelines }))
    }

    async fn describe_pipeline(
        &self,
        request: Request<v1::DescribePipelineRequest>,
    ) -> Result<Response<v1::DescribePipelineResponse>, Status> {
        let pipeline = self.runtime.pipeline(&request.into_inner().name)?;
        let offsets = self.runtime.broker().group_offsets(pipeline.group());
        Ok(Response::new(v1::DescribePipelineResponse {
            pipeline: Some(self.to_pipeline(&pipeline)),
            yaml: pipeline.yaml(),
            stages: pipeline.stages().iter().map(|stage| self.to_stage(stage)).collect(),
            offsets: offsets.iter().map(|offset| to_group_offset(offset, None)).collect(),
        }))
    }

    async fn pause_pipeline(
        &self,
        request: Request<v1::PausePipelineRequest>,
    ) -> Result<Response<v1::PausePipelineResponse>, Status> {
        let pipeline = self.runtime.pause(&request.into_inner().name).await?;
        Ok(Response::new(v1::PausePipelineResponse { pipeline: Some(self.to_pipeline(&pipeline)) }))
    }

    async fn resume_pipeline(
        &self,
        request: Request<v1::ResumePipelineRequest>,
    ) -> Result<Response<v1::ResumePipelineResponse>, Status> {
        let pipeline = self.runtime.resume(&request.into_inner().name).await?;
        Ok(Response::new(v1::ResumePipelineResponse { pipeline: Some(self.to_pipeline(&pipeline)) }))
    }

    async fn delete_pipeline(
        &self,
        request: Request<v1::DeletePipelineRequest>,
    ) -> Result<Response<v1::DeletePipelineResponse>, Status> {
        self.runtime.delete(&request.into_inner().name).await?;
        Ok(Response::new(v1::DeletePipelineResponse {}))
    }
}
