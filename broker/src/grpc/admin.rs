//! The service `millstream.v1.Admin`: backups.

use std::ops::ControlFlow;
use std::sync::Arc;

use millstream_api::v1;
use millstream_api::v1::admin_server::Admin;
use millstream_api::v1::backup_chunk::Chunk;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::status;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::store::backup::{BackupError, Manifest, Piece, Snapshot};

/// Maximum number of pieces, of at most 1 MiB each, that are read before the connection can send them.
const PIECES_AHEAD: usize = 2;

/// Maximum number of concurrent backups. Each occupies a thread, and keeps on disk a copy of the journal and the
/// segments that are deleted while it runs.
const BACKUPS_MAX: usize = 1;

pub(super) struct Service {
    broker: Broker,
    room: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker, room: Arc::new(Semaphore::new(BACKUPS_MAX)) }
    }
}

type Sender = mpsc::Sender<Result<v1::BackupChunk, Status>>;

#[tonic::async_trait]
impl Admin for Service {
    type BackupStream = ReceiverStream<Result<v1::BackupChunk, Status>>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            let message = "another backup is being made of this server: try again when it is finished";
            return Err(status::status(v1::ErrorCode::InUse, Code::FailedPrecondition, message));
        };
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let broker = self.broker.clone();
        tokio::task::spawn_blocking(move || send(&broker, &sender, permit));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends a backup, followed by its manifest or by the error that ended it. Stops early if the receiver is gone.
fn send(broker: &Broker, sender: &Sender, _permit: OwnedSemaphorePermit) {
    let last = match backup(broker, sender) {
        Ok(manifest) => Ok(chunk(Chunk::Manifest(to_manifest(manifest)))),
        Err(BackupError::Cancelled) if broker.is_stopping() => Err(BrokerError::ShuttingDown.into()),
        Err(BackupError::Cancelled) => return,
        Err(error) => {
            tracing::error!(%error, "a backup failed");
            Err(to_status(&error))
        }
    };
    // The requester may have disconnected.
    let _ = sender.blocking_send(last);
}

fn backup(broker: &Broker, sender: &Sender) -> Result<Manifest, BackupError> {
    let send = |next: Chunk| {
        let gone = broker.is_stopping() || sender.blocking_send(Ok(chunk(next))).is_err();
        if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let snapshot = Snapshot::take(broker.store(), broker.clock().now_ms())?;
    if send(Chunk::Begun(v1::BackupBegun { bytes: snapshot.bytes() })).is_break() {
        return Err(BackupError::Cancelled);
    }
    snapshot.copy(|Piece { file, offset, bytes }| {
        send(Chunk::Piece(v1::BackupPiece { file: file.as_ref().to_owned(), offset, bytes }))
    })
}

fn chunk(chunk: Chunk) -> v1::BackupChunk {
    v1::BackupChunk { chunk: Some(chunk) }
}

fn to_manifest(Manifest { format, data_format, version, created_at_ms, files }: Manifest) -> v1::BackupManifest {
    let file = |file: crate::store::backup::BackupFile| v1::BackupFile {
        name: file.name,
        bytes: file.bytes,
        crc32c: file.crc32c,
    };
    let files = files.into_iter().map(file).collect();
    v1::BackupManifest { format, data_format, version, created_at_ms, files }
}

/// Returns the status for a failed backup. It is an internal error and not a storage failure, because the store still
/// works.
fn to_status(error: &BackupError) -> Status {
    let message = format!("the server could not make the backup: {error}");
    status::status(v1::ErrorCode::Internal, Code::Internal, message)
}
