//! The body of a call whose messages are admitted one by one before they are read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::net::admission::Admission;

/// Bytes before each message: whether it is compressed u8, and its length u32, big-endian.
const PREFIX_BYTES: usize = 5;

/// Passes on the messages of a gRPC body. The bytes of a message follow once it is admitted with its length; meanwhile
/// nothing more is read from the peer than one frame.
pub(super) struct AdmittedBody {
    body: Body,
    admission: Admission,
    /// Data that was read and not passed on.
    held: Bytes,
    /// What was read of the prefix of the next message.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the current message that are still to be passed on.
    left: usize,
    admitting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl AdmittedBody {
    pub(super) fn new(body: Body, admission: Admission) -> Self {
        Self {
            body,
            admission,
            held: Bytes::new(),
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            left: 0,
            admitting: None,
        }
    }

    /// Takes what is held of the prefix of the next message, and begins to admit the message once its length is known.
    fn read_prefix(&mut self) {
        let taken = self.held.split_to((PREFIX_BYTES - self.prefix_bytes).min(self.held.len()));
        self.prefix[self.prefix_bytes..self.prefix_bytes + taken.len()].copy_from_slice(&taken);
        self.prefix_bytes += taken.len();
        if self.prefix_bytes == PREFIX_BYTES {
            let [_, length @ ..] = self.prefix;
            self.left = u32::from_be_bytes(length) as usize;
            self.admitting = Some(Box::pin(self.admission.clone().admit(self.left)));
        }
    }

    fn take_prefix(&mut self) -> Bytes {
        let read = std::mem::take(&mut self.prefix_bytes);
        Bytes::copy_from_slice(&self.prefix[..read])
    }
}

impl http_body::Body for AdmittedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(admitting) = &mut self.admitting {
                ready!(admitting.as_mut().poll(context));
                self.admitting = None;
                let prefix = self.take_prefix();
                return Poll::Ready(Some(Ok(Frame::data(prefix))));
            }
            if !self.held.is_empty() {
                if self.left == 0 {
                    self.read_prefix();
                    continue;
                }
                let part = self.left.min(self.held.len());
                self.left -= part;
                return Poll::Ready(Some(Ok(Frame::data(self.held.split_to(part)))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                // A body that ends within a prefix: the decoder says what is wrong with it.
                None if self.prefix_bytes > 0 => return Poll::Ready(Some(Ok(Frame::data(self.take_prefix())))),
                ended => return Poll::Ready(ended),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.admitting.is_none() && self.held.is_empty() && self.prefix_bytes == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
