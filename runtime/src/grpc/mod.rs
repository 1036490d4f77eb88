//! The gRPC services for modules, pipelines and their state (`sdk/proto`), in addition to those of the broker.

mod modules;
mod pipelines;
mod state;
mod status;

use millstream_api::MESSAGE_BYTES_MAX;
use millstream_api::v1::modules_server::ModulesServer;
use millstream_api::v1::pipelines_server::PipelinesServer;
use millstream_api::v1::state_server::StateServer;
use tonic::service::RoutesBuilder;

use crate::runtime::Runtime;

/// Adds the runtime's services. `module_bytes_max` is the maximum size of an uploaded module, in bytes.
pub fn add_services(routes: &mut RoutesBuilder, runtime: &Runtime, module_bytes_max: usize) {
    let modules = ModulesServer::new(modules::Service::new(runtime.clone(), module_bytes_max));
    routes
        .add_service(modules.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PipelinesServer::new(pipelines::Service::new(runtime.clone())))
        .add_service(StateServer::new(state::Service::new(runtime.clone())));
}
