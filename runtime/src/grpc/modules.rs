//! The gRPC service `millstream.v1.Modules`.

use bytes::BytesMut;
use futures::StreamExt;
use millstream_api::v1;
use millstream_api::v1::modules_server::Modules;
use millstream_api::v1::push_module_request::Part;
use millstream_broker::grpc::status::invalid;
use tonic::{Request, Response, Status, Streaming};

use crate::error::RuntimeError;
use crate::host::ModuleError;
use crate::modules::ModuleEntry;
use crate::runtime::Runtime;

pub(super) struct Service {
    runtime: Runtime,
    module_bytes_max: usize,
}

impl Service {
    pub(super) fn new(runtime: Runtime, module_bytes_max: usize) -> Self {
        Self { runtime, module_bytes_max }
    }
}

#[tonic::async_trait]
impl Modules for Service {
    async fn push_module(
        &self,
        request: Request<Streaming<v1::PushModuleRequest>>,
    ) -> Result<Response<v1::PushModuleResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.next().await.transpose()?.and_then(|request| request.part);
        let Some(Part::Reference(reference)) = first else {
            return Err(invalid("the first message of PushModule names the module: set `reference`"));
        };
        let mut wasm = BytesMut::new();
        while let Some(request) = parts.next().await.transpose()? {
            let Some(Part::Bytes(bytes)) = request.part else {
                return Err(invalid("messages after the first of PushModule carry `bytes`"));
            };
            if wasm.len() + bytes.len() > self.module_bytes_max {
                let source =
                    ModuleError::TooLarge { bytes: wasm.len() + bytes.len(), module_bytes_max: self.module_bytes_max };
                return Err(RuntimeError::Module { reference, source }.into());
            }
            wasm.extend_from_slice(&bytes);
        }
        let (entry, changed) = self.runtime.push_module(&reference, wasm.freeze()).await?;
        Ok(Response::new(v1::PushModuleResponse { module: Some(to_module(entry)), changed }))
    }

    async fn list_modules(
        &self,
        _: Request<v1::ListModulesRequest>,
    ) -> Result<Response<v1::ListModulesResponse>, Status> {
        let modules = self.runtime.modules().all().into_iter().map(to_module).collect();
        Ok(Response::new(v1::ListModulesResponse { modules }))
    }

    async fn describe_module(
        &self,
        request: Request<v1::DescribeModuleRequest>,
    ) -> Result<Response<v1::DescribeModuleResponse>, Status> {
        let entry = self.runtime.modules().get(&request.into_inner().reference)?;
        let used_by = self.runtime.module_uses(&entry).into_iter();
        let used_by = used_by.map(|(pipeline, stage)| v1::ModuleUse { pipeline, stage }).collect();
        Ok(Response::new(v1::DescribeModuleResponse { module: Some(to_module(entry)), used_by }))
    }

    async fn remove_module(
        &self,
        request: Request<v1::RemoveModuleRequest>,
    ) -> Result<Response<v1::RemoveModuleResponse>, Status> {
        self.runtime.remove_module(&request.into_inner().reference).await?;
        Ok(Response::new(v1::RemoveModuleResponse {}))
    }
}

fn to_module(entry: ModuleEntry) -> v1::Module {
    v1::Module {
        reference: entry.reference,
        hash: entry.hash.to_string(),
        kind: entry.kind.to_string(),
        bytes: entry.bytes,
        pushed_at_ms: entry.pushed_at_ms,
    }
}
