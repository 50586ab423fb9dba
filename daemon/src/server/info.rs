//! What the server tells of itself.

use cairn_proto::cairn::v1::{InfoRequest, InfoResponse, server_service_server::ServerService};
use tonic::{Request, Response, Status};

/// Tells the version of this program.
#[derive(Debug)]
pub(super) struct InfoServer;

#[async_trait::async_trait]
impl ServerService for InfoServer {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { version: env!("CARGO_PKG_VERSION").to_owned() }))
    }
}
