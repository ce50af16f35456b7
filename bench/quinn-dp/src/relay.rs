//! A TCP flow: one socket, one stream, two pumps. It works in the same way on both sides of the
//! tunnel.
//!
//! Each pump moves bytes one way with back-pressure end to end. FIN maps to `shutdown(SHUT_WR)` and
//! back in each direction on its own. A socket's reset becomes RESET_STREAM and STOP_SENDING, and
//! these become a reset of the other socket, so that the far side never sees a clean end with bytes
//! missing.
//!
//! The pumps are tasks of their own, so that the two directions can run on two threads and waking
//! one does not poll the other. A pump that is dropped before its direction is over resets the
//! stream: quinn alone would finish it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use qmux_proto::FlowError;
use quinn::{Connection, ReadError, SendStream, VarInt, WriteError};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::receiver::Receiver;

/// The smallest and the largest read from a socket, in bytes. A read that fills its buffer makes
/// the next one larger.
const READ_BYTES_MIN: usize = 4 << 10;
const READ_BYTES_MAX: usize = 128 << 10;

/// Pieces of a stream that one write to a socket carries: 128 KB in small packets.
const PIECES_MAX: usize = 96;

/// Bytes that one pump moves before the other tasks of its thread get a turn.
const BYTES_PER_TURN: usize = 512 << 10;

/// How a TCP flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowEnd {
    /// Both directions came to their end.
    Completed,
    /// The flow was reset, for this reason.
    Reset(FlowError),
}

/// Why a pump ended.
enum PumpEnd {
    /// Its direction is over; the other one goes on.
    DirectionOver,
    /// The flow is over in both directions.
    Aborted(FlowError),
}

/// The state that the pumps and [`ResetUnlessDone`] share.
struct Shared {
    socket: TcpStream,
    /// The code of the [`FlowError`] with which a direction is reset or stopped.
    reason: AtomicU64,
    /// Bytes that our socket sent may be lost, so it must not see a clean end.
    stopped: AtomicBool,
}

/// Runs a flow to its end. `early` are bytes that have been read from the stream already;
/// `reset_reason` is what the peer is told when our socket is reset.
pub(crate) async fn run(
    socket: TcpStream,
    (send, recv): (SendStream, Receiver),
    early: Bytes,
    reset_reason: FlowError,
    connection: &Connection,
) -> FlowEnd {
    let shared = Arc::new(Shared {
        socket,
        reason: AtomicU64::new(reset_reason.code()),
        stopped: AtomicBool::new(false),
    });
    let mut socket = ResetUnlessDone::new(Arc::clone(&shared));
    let mut pumps = JoinSet::new();
    pumps.spawn(Inward::new(send, Arc::clone(&shared)).run());
    pumps.spawn(Outward::new(recv, Arc::clone(&shared)).run(early));
    let mut closed = pin!(connection.closed());
    let aborted = loop {
        let ended = tokio::select! {
            ended = pumps.join_next() => ended,
            _ = &mut closed => break Some(FlowError::Internal),
        };
        match ended {
            Some(Ok(PumpEnd::DirectionOver)) => {}
            Some(Ok(PumpEnd::Aborted(error))) => break Some(error),
            // A pump panicked; the runtime has printed why.
            Some(Err(_)) => break Some(FlowError::Internal),
            None => break None,
        }
    };
    if let Some(error) = aborted {
        shared.reason.store(error.code(), Ordering::Relaxed);
        pumps.shutdown().await;
        return FlowEnd::Reset(error);
    }
    socket.done = !shared.stopped.load(Ordering::Relaxed);
    FlowEnd::Completed
}

/// Gives up a stream in both directions.
pub(crate) fn refuse(send: &mut SendStream, recv: &mut Receiver, error: FlowError) {
    // This fails if the direction is over already.
    let _over = send.reset(code(error));
    recv.stop(error);
}

/// Makes a socket reset its connection when it is closed (`SO_LINGER` with a time of zero).
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // This fails only if the connection is gone already.
    let _gone = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

fn code(error: FlowError) -> VarInt {
    VarInt::from_u64(error.code()).unwrap_or(VarInt::MAX)
}

/// Resets the socket's connection when the flow is dropped before its end, or ended with bytes
/// missing.
struct ResetUnlessDone {
    shared: Arc<Shared>,
    done: bool,
}

impl ResetUnlessDone {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            done: false,
        }
    }
}

impl Drop for ResetUnlessDone {
    fn drop(&mut self) {
        if !self.done {
            reset_on_close(&self.shared.socket);
        }
    }
}

/// Socket → stream.
struct Inward {
    stream: SendStream,
    shared: Arc<Shared>,
}

impl Drop for Inward {
    fn drop(&mut self) {
        let reason = FlowError::from_code(self.shared.reason.load(Ordering::Relaxed));
        // This does nothing if the stream is finished and all of it was acknowledged.
        let _finished = self.stream.reset(code(reason));
    }
}

impl Inward {
    fn new(stream: SendStream, shared: Arc<Shared>) -> Self {
        Self { stream, shared }
    }

    async fn run(mut self) -> PumpEnd {
        self.pump().await.unwrap_or_else(|end| end)
    }

    async fn pump(&mut self) -> Result<PumpEnd, PumpEnd> {
        let shared = Arc::clone(&self.shared);
        let socket = &shared.socket;
        let mut stopped = pin!(self.stream.stopped());
        let mut read_bytes = READ_BYTES_MIN;
        let mut moved = 0;
        loop {
            let mut buffer = BytesMut::with_capacity(read_bytes);
            match socket.try_read_buf(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    read_bytes = next_read_bytes(read_bytes, read);
                    let written = self.stream.write_chunk(buffer.freeze()).await;
                    written.map_err(|error| self.write_failed(&error))?;
                    moved += read;
                    if moved >= BYTES_PER_TURN {
                        moved = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An idle flow holds no buffer.
                    drop(buffer);
                    moved = 0;
                    tokio::select! {
                        biased;
                        // The read that follows finds the same error.
                        _ready = socket.readable() => {}
                        stopped = &mut stopped => return Err(self.stop_sending(stopped.is_ok())),
                    }
                }
                Err(_) => return Err(PumpEnd::Aborted(self.reason())),
            }
        }
        if self.stream.finish().is_err() {
            return Err(self.stop_sending(true));
        }
        // The pump waits until the peer has everything, because the lane must not close before
        // that.
        match stopped.await {
            Ok(None) => Ok(PumpEnd::DirectionOver),
            // The peer has stopped the stream. Bytes that it has not read are lost.
            Ok(Some(_)) => Err(self.stop_sending(true)),
            Err(_) => Err(self.stop_sending(false)),
        }
    }

    fn reason(&self) -> FlowError {
        FlowError::from_code(self.shared.reason.load(Ordering::Relaxed))
    }

    fn write_failed(&self, error: &WriteError) -> PumpEnd {
        self.stop_sending(matches!(error, WriteError::Stopped(_)))
    }

    /// If the lane is open, the peer has stopped the stream, because its socket takes no more: the
    /// other direction goes on. If the lane is gone, both directions end.
    fn stop_sending(&self, lane_open: bool) -> PumpEnd {
        if lane_open {
            self.shared.stopped.store(true, Ordering::Relaxed);
            PumpEnd::DirectionOver
        } else {
            PumpEnd::Aborted(FlowError::Internal)
        }
    }
}

fn next_read_bytes(capacity: usize, read: usize) -> usize {
    if read >= capacity {
        (capacity * 4).min(READ_BYTES_MAX)
    } else if read < capacity / 4 {
        (capacity / 2).max(READ_BYTES_MIN)
    } else {
        capacity
    }
}

/// Stream → socket.
struct Outward {
    stream: Receiver,
    shared: Arc<Shared>,
}

impl Drop for Outward {
    fn drop(&mut self) {
        let reason = FlowError::from_code(self.shared.reason.load(Ordering::Relaxed));
        self.stream.stop(reason);
    }
}

impl Outward {
    fn new(stream: Receiver, shared: Arc<Shared>) -> Self {
        Self { stream, shared }
    }

    async fn run(mut self, early: Bytes) -> PumpEnd {
        self.pump(early).await.unwrap_or_else(|end| end)
    }

    async fn pump(&mut self, early: Bytes) -> Result<PumpEnd, PumpEnd> {
        let shared = Arc::clone(&self.shared);
        let socket = &shared.socket;
        let mut pieces = [const { Bytes::new() }; PIECES_MAX];
        if !early.is_empty() {
            pieces[0] = early;
            write_all(socket, &mut pieces[..1]).await?;
        }
        let mut moved = 0;
        loop {
            match self.stream.read(&mut pieces).await {
                Ok(Some(count)) => {
                    moved += write_all(socket, &mut pieces[..count]).await?;
                    if moved >= BYTES_PER_TURN {
                        moved = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Ok(None) => {
                    // If the connection is gone already, the other pump notices.
                    let _gone = SockRef::from(socket).shutdown(Shutdown::Write);
                    return Ok(PumpEnd::DirectionOver);
                }
                Err(ReadError::Reset(code)) => {
                    return Err(PumpEnd::Aborted(FlowError::from_code(code.into_inner())));
                }
                Err(_) => return Err(PumpEnd::Aborted(FlowError::Internal)),
            }
        }
    }
}

/// Writes all pieces and frees each as soon as it is written. Returns how many bytes there were.
///
/// An error means that the socket takes no more bytes; there may still be bytes from it to read.
async fn write_all(socket: &TcpStream, pieces: &mut [Bytes]) -> Result<usize, PumpEnd> {
    let mut moved = 0;
    let mut first = 0;
    while first < pieces.len() {
        let written = {
            let left = &pieces[first..];
            let slices: [IoSlice<'_>; PIECES_MAX] =
                std::array::from_fn(|index| IoSlice::new(left.get(index).map_or(&[], |it| it)));
            socket.try_write_vectored(&slices[..left.len()])
        };
        match written {
            Ok(mut written) => {
                moved += written;
                while first < pieces.len() && written >= pieces[first].len() {
                    written -= pieces[first].len();
                    pieces[first] = Bytes::new();
                    first += 1;
                }
                if written > 0 {
                    pieces[first] = pieces[first].split_off(written);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The write that follows finds the same error.
                let _ready = socket.writable().await;
            }
            Err(_) => return Err(PumpEnd::DirectionOver),
        }
    }
    Ok(moved)
}
