//! The gRPC service `millstream.v1.State`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use millstream_api::v1;
use millstream_api::v1::state_server::State;
use millstream_broker::BrokerError;
use millstream_record::{Column, ColumnReader};
use tonic::{Request, Response, Status};

use crate::deploy::Stage;
use crate::runtime::Runtime;

/// Default for the maximum number of keys in a listing.
const KEYS_DEFAULT: usize = 1_000;

/// Maximum number of keys in one message of a listing.
const KEYS_A_MESSAGE: usize = 500;

pub(super) struct Service {
    runtime: Runtime,
}

impl Service {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    /// Converts entries to messages, with the values that the module derives from the accumulators.
    async fn entries(
        &self,
        stage: &Arc<Stage>,
        found: Vec<(u32, Vec<u8>, Vec<u8>)>,
    ) -> Result<Vec<v1::StateEntry>, Status> {
        let keys: Column = found.iter().map(|(_, key, _)| Some(key.as_slice())).collect();
        let accumulators: Column = found.iter().map(|(_, _, accumulator)| Some(accumulator.as_slice())).collect();
        let values = self.runtime.finish(stage, keys, accumulators).await?;
        let values = ColumnReader::new(&values);
        let entry = |(index, (partition, key, accumulator)): (usize, (u32, Vec<u8>, Vec<u8>))| v1::StateEntry {
            key: key.into(),
            accumulator: accumulator.into(),
            value: values.get(index).map(|value| value.to_vec().into()),
            partition,
        };
        Ok(found.into_iter().enumerate().map(entry).collect())
    }
}

fn named(stage: &str) -> Option<&str> {
    (!stage.is_empty()).then_some(stage)
}

#[tonic::async_trait]
impl State for Service {
    async fn get_state(&self, request: Request<v1::GetStateRequest>) -> Result<Response<v1::GetStateResponse>, Status> {
        let request = request.into_inner();
        let stage = self.runtime.aggregate_stage(&request.pipeline, named(&request.stage))?;
        let partitions = self.runtime.broker().state().partitions(stage.store());
        let mut found = None;
        for (number, partition) in partitions {
            if let Some(accumulator) = partition.get(&request.key).map_err(BrokerError::from)? {
                found = Some((number, request.key.to_vec(), accumulator));
                break;
            }
        }
        let entry = match found {
            None => None,
            Some(found) => self.entries(&stage, vec![found]).await?.pop(),
        };
        Ok(Response::new(v1::GetStateResponse { entry }))
    }

    type ListStateStream = Pin<Box<dyn Stream<Item = Result<v1::ListStateResponse, Status>> + Send>>;

    async fn list_state(
        &self,
        request: Request<v1::ListStateRequest>,
    ) -> Result<Response<Self::ListStateStream>, Status> {
        let request = request.into_inner();
        let stage = self.runtime.aggregate_stage(&request.pipeline, named(&request.stage))?;
        let mut room = match request.max_keys {
            0 => KEYS_DEFAULT,
            max => max as usize,
        };
        let mut found = Vec::new();
        for (number, partition) in self.runtime.broker().state().partitions(stage.store()) {
            let entries = partition.scan(&request.key_prefix, room).map_err(BrokerError::from)?;
            room -= entries.len();
            found.extend(entries.into_iter().map(|(key, accumulator)| (number, key, accumulator)));
        }
        let service = Self { runtime: self.runtime.clone() };
        let parts = futures::stream::unfold(found, move |mut left| {
            let (service, stage) = (Self { runtime: service.runtime.clone() }, stage.clone());
            async move {
                if left.is_empty() {
                    return None;
                }
                let rest = left.split_off(left.len().min(KEYS_A_MESSAGE));
                let entries = service.entries(&stage, left).await;
                let response = entries.map(|entries| v1::ListStateResponse { entries });
                // The stream ends after an error.
                let rest = if response.is_ok() { rest } else { Vec::new() };
                Some((response, rest))
            }
        });
        Ok(Response::new(Box::pin(parts)))
    }
}
