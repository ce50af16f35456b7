//! The receiving side of a TCP flow's stream, with a second way to learn of its end.
//!
//! quiche may forget a FIN without data when it is lost. A peer on quiche therefore repeats the
//! final size of a stream on the control stream ([`Finished`]), and a stream that was read up to
//! there is complete. quinn repeats its FINs itself and announces nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use qmux_proto::FlowError;
use qmux_proto::control::Finished;
use quinn::{ReadError, RecvStream, VarInt};
use tokio::sync::Notify;

/// No final size is known. Sizes of streams are varints, which are smaller.
const UNKNOWN: u64 = u64::MAX;

/// The final size that the peer announced for one stream.
#[derive(Debug)]
struct Announcement {
    final_size: AtomicU64,
    made: Notify,
}

/// The streams of a lane that are being received, by their id.
#[derive(Debug, Default)]
pub(crate) struct Receivers(Mutex<HashMap<u64, Arc<Announcement>>>);

impl Receivers {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Arc<Announcement>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer repeats the FIN of a stream. One that is not received any more does not need it.
    pub(crate) fn announced(&self, finished: Finished) {
        if let Some(announcement) = self.streams().get(&finished.stream_id) {
            announcement
                .final_size
                .store(finished.final_size, Ordering::Release);
            announcement.made.notify_one();
        }
    }
}

/// A stream that is being received. Dropping it before its end tells the peer to stop sending.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: RecvStream,
    received: u64,
    announcement: Arc<Announcement>,
    receivers: Arc<Receivers>,
}

impl Receiver {
    pub(crate) fn new(stream: RecvStream, receivers: &Arc<Receivers>) -> Self {
        let announcement = Arc::new(Announcement {
            final_size: AtomicU64::new(UNKNOWN),
            made: Notify::new(),
        });
        let id = VarInt::from(stream.id()).into_inner();
        receivers.streams().insert(id, Arc::clone(&announcement));
        Self {
            stream,
            received: 0,
            announcement,
            receivers: Arc::clone(receivers),
        }
    }

    /// Reads what is there, at least something, into as many pieces as there are. `None`: the
    /// stream is complete.
    pub(crate) async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        if self.is_complete() {
            return Ok(None);
        }
        let (received, announcement) = (self.received, &self.announcement);
        let completed = async {
            loop {
                announcement.made.notified().await;
                if announcement.final_size.load(Ordering::Acquire) == received {
                    return;
                }
            }
        };
        let count = tokio::select! {
            biased;
            read = self.stream.read_chunks(pieces) => read?,
            () = completed => None,
        };
        let read = pieces.iter().take(count.unwrap_or(0));
        self.received += read.map(|piece| piece.len() as u64).sum::<u64>();
        Ok(count)
    }

    /// Whether everything up to the announced size was read.
    fn is_complete(&self) -> bool {
        self.announcement.final_size.load(Ordering::Acquire) == self.received
    }

    /// Tells the peer to stop sending. A stream that was read to its end stays so.
    pub(crate) fn stop(&mut self, error: FlowError) {
        let error = if self.is_complete() {
            FlowError::NoError
        } else {
            error
        };
        let code = VarInt::from_u64(error.code()).unwrap_or(VarInt::MAX);
        let _ended = self.stream.stop(code);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let id = VarInt::from(self.stream.id()).into_inner();
        self.receivers.streams().remove(&id);
    }
}
