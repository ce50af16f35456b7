//! A TCP flow: one socket, one stream, two pumps. The same on both sides of the tunnel.
//!
//! Each pump moves bytes one way with back-pressure end to end: nothing is read before there is room for it, and an
//! idle flow holds no buffer. FIN maps to `shutdown(SHUT_WR)` and back in each direction on its own. A socket's reset
//! becomes RESET_STREAM and STOP_SENDING, and these become a reset of the other socket, so that the far side never
//! sees a clean end with bytes missing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_proto::FlowError;

use crate::buffer::{Block, BlockSize, LARGE_BLOCK_BYTES, StreamBuf};
use crate::metrics::CoreCounters;
use crate::quic::event::{Event, yield_now};
use crate::quic::lane::{Lane, StreamRead, StreamRoom, StreamWaiters};
use crate::sys::tcp::TcpSocket;

/// Bytes that one pump moves before the other tasks of the core get a turn.
const BYTES_PER_TURN: usize = 2 * LARGE_BLOCK_BYTES;

/// How often a flow that waits for the tunnel looks whether its socket still lives.
pub(crate) const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// How a TCP flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpFlowEnd {
    /// Both directions ended with a FIN.
    Completed,
    /// Reset, by whom and why.
    Reset(FlowError),
}

/// A flow's two ends.
pub(crate) struct TcpFlow {
    /// The visitor's or the service's socket.
    pub(crate) socket: TcpSocket,
    /// The lane that carries the flow.
    pub(crate) lane: Rc<Lane>,
    /// The flow's stream on that lane.
    pub(crate) stream: u64,
    /// What waits for that stream, from [`Lane::attach`].
    pub(crate) waiters: Rc<StreamWaiters>,
    /// The reason told to the peer when our socket is reset.
    pub(crate) reset_reason: FlowError,
    /// The core's counters.
    pub(crate) counters: Arc<CoreCounters>,
}

/// What was done of a flow before its pumps start.
#[derive(Default)]
pub(crate) struct Begun {
    /// Bytes read from the stream that the socket has not got.
    pub(crate) early: Vec<u8>,
    /// The stream has ended behind them.
    pub(crate) early_fin: bool,
    /// Bytes read from the socket that the stream has not got.
    pub(crate) unsent: VecDeque<StreamBuf>,
    /// The socket has ended behind them.
    pub(crate) ended: bool,
    /// The stream has got that FIN, too.
    pub(crate) fin_sent: bool,
}

/// State that the two pumps share.
struct Shared {
    flow: TcpFlow,
    /// Set when the flow must end in both directions at once.
    aborted: Cell<Option<FlowError>>,
    /// Wakes the pump that waits for the socket when the other one aborts: one event per pump.
    abort_inward: Event,
    abort_outward: Event,
    /// The peer sent STOP_SENDING: what our socket still sends is not wanted.
    stopped: Cell<bool>,
    /// A write met the socket's reset and so took the error away from the next read, which then looks like a FIN.
    broken: Cell<bool>,
    /// When to look again whether the socket still lives; there from the first wait for the tunnel on. A timer is larger
    /// than all else of an idle flow.
    next_check: RefCell<Option<Pin<Box<crate::core::time::Sleep>>>>,
}

/// Why a pump stopped early.
enum Stop {
    /// The flow is over in both directions.
    Aborted,
    /// Only this direction is over.
    DirectionOver,
}

/// What follows the bytes that [`fill`] has read.
pub(crate) enum Next {
    /// Perhaps more: the buffer is full.
    More,
    /// Nothing now.
    Nothing,
    /// The end: all has been read.
    Fin,
    /// The socket was reset.
    Error,
}

/// Reads until `into` is full or the socket has no more. So a FIN that follows the last bytes closely is seen with
/// them and rides in their frame, and small segments are gathered; it costs no call more than reading once and then
/// finding the socket empty.
pub(crate) fn fill(socket: &TcpSocket, into: &mut [u8]) -> (usize, Next) {
    let mut read = 0;
    while read < into.len() {
        match socket.try_read(&mut into[read..]) {
            Ok(0) => return (read, Next::Fin),
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return (read, Next::Nothing);
            }
            Err(_) => return (read, Next::Error),
        }
    }
    (read, Next::More)
}

/// Runs the flow to its end.
pub(crate) async fn run(flow: TcpFlow, begun: Begun) -> TcpFlowEnd {
    let shared = Rc::new(Shared {
        flow,
        aborted: Cell::new(None),
        abort_inward: Event::default(),
        abort_outward: Event::default(),
        stopped: Cell::new(false),
        broken: Cell::new(false),
        next_check: RefCell::default(),
    });
    {
        let mut inward = pin!(shared.socket_to_stream(begun.unsent, begun.ended));
        let mut outward = pin!(shared.stream_to_socket(begun.early, begun.early_fin));
        let (mut inward_done, mut outward_done) = (begun.fin_sent, false);
        poll_fn(|cx| {
            inward_done = inward_done || inward.as_mut().poll(cx).is_ready();
            outward_done = outward_done || outward.as_mut().poll(cx).is_ready();
            if inward_done && outward_done {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
    shared.end()
}

impl Shared {
    fn end(&self) -> TcpFlowEnd {
        let flow = &self.flow;
        flow.lane.detach(flow.stream);
        if let Some(error) = self.aborted.get() {
            flow.socket.reset_on_close();
            flow.counters.tcp_flows_reset.increment();
            return TcpFlowEnd::Reset(error);
        }
        if self.stopped.get() {
            // Our socket may have sent what nobody took: a clean close would claim otherwise.
            flow.socket.reset_on_close();
        }
        flow.counters.tcp_flows_completed.increment();
        TcpFlowEnd::Completed
    }

    /// Ends both directions: the stream is reset and stopped, the socket will be reset.
    fn abort(&self, error: FlowError) -> Stop {
        if self.aborted.get().is_none() {
            self.aborted.set(Some(error));
            let TcpFlow {
                lane,
                stream,
                waiters,
                ..
            } = &self.flow;
            lane.reset(*stream, error);
            lane.stop(*stream, error);
            self.abort_inward.set();
            self.abort_outward.set();
            waiters.readable.set();
            waiters.writable.set();
        }
        Stop::Aborted
    }

    // ---- socket → stream -----------------------------------------------------------------------------------------

    async fn socket_to_stream(&self, unsent: VecDeque<StreamBuf>, ended: bool) {
        let TcpFlow { lane, stream, .. } = &self.flow;
        match self.pump_inward(unsent, ended).await {
            Ok(()) | Err(Stop::Aborted) => {}
            Err(Stop::DirectionOver) => {
                self.stopped.set(true);
                lane.reset(*stream, self.flow.reset_reason);
            }
        }
    }

    async fn pump_inward(&self, unsent: VecDeque<StreamBuf>, ended: bool) -> Result<(), Stop> {
        let TcpFlow {
            socket, counters, ..
        } = &self.flow;
        for bytes in unsent {
            self.write_stream(bytes, false).await?;
        }
        if ended {
            return self.finish_stream().await;
        }
        let mut size = BlockSize::Small;
        let mut moved = 0;
        loop {
            let room = self.wait_for_room().await?;
            let mut block = Block::take(size);
            let capacity = block.bytes().len().min(room);
            let (read, mut next) = fill(socket, &mut block.bytes_mut()[..capacity]);
            if self.broken.get() && matches!(next, Next::Fin) {
                next = Next::Error;
            }
            if read > 0 {
                counters.tcp_bytes_in.add(read as u64);
                size = size.after(read);
                let fin = matches!(next, Next::Fin);
                self.write_stream(block.freeze(read), fin).await?;
                if fin {
                    return Ok(());
                }
            } else {
                drop(block);
            }
            match next {
                Next::More => {
                    moved += read;
                    if moved >= BYTES_PER_TURN {
                        moved = 0;
                        yield_now().await;
                    }
                }
                Next::Nothing => {
                    moved = 0;
                    self.wait_socket_readable().await?;
                }
                Next::Fin => return self.finish_stream().await,
                Next::Error => return Err(self.abort(self.flow.reset_reason)),
            }
        }
    }

    /// Gives all of `bytes` to the stream. There was room a moment ago; should quiche take less, waits for more.
    async fn write_stream(&self, bytes: StreamBuf, fin: bool) -> Result<(), Stop> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.flow;
        let mut rest = Some(bytes);
        while let Some(bytes) = rest.take() {
            rest = match lane.write(*stream, bytes, fin, waiters) {
                Ok(rest) => rest,
                Err(error) => return self.peer_stopped(error),
            };
            if rest.is_some() {
                self.wait_for_room().await?;
            }
        }
        Ok(())
    }

    /// Waits until the stream takes at least one byte.
    async fn wait_for_room(&self) -> Result<usize, Stop> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.flow;
        loop {
            if self.aborted.get().is_some() {
                return Err(Stop::Aborted);
            }
            match lane.room(*stream, LARGE_BLOCK_BYTES, waiters) {
                StreamRoom::Bytes(room) => return Ok(room),
                StreamRoom::Blocked => self.wait_stream_writable().await?,
                StreamRoom::Stopped(error) => {
                    self.peer_stopped(error)?;
                }
            }
        }
    }

    /// Waits for the stream's event, and looks now and then whether the socket still lives: while nothing is read from
    /// it, nothing else would tell that it was reset.
    async fn wait_stream_writable(&self) -> Result<(), Stop> {
        let TcpFlow {
            socket, waiters, ..
        } = &self.flow;
        self.set_next_check();
        poll_fn(|cx| {
            loop {
                if waiters.writable.poll(cx).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                let due = match self.next_check.borrow_mut().as_mut() {
                    Some(check) => check.as_mut().poll(cx).is_ready(),
                    None => false,
                };
                if !due {
                    return Poll::Pending;
                }
                if socket.has_failed() {
                    return Poll::Ready(Err(self.abort(self.flow.reset_reason)));
                }
                self.set_next_check();
            }
        })
        .await
    }

    fn set_next_check(&self) {
        let at = Instant::now() + SOCKET_CHECK;
        let mut check = self.next_check.borrow_mut();
        match check.as_mut() {
            Some(check) => check.as_mut().reset(at),
            None => *check = Some(Box::pin(crate::core::time::sleep_until(at))),
        }
    }

    async fn finish_stream(&self) -> Result<(), Stop> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.flow;
        loop {
            if self.aborted.get().is_some() {
                return Err(Stop::Aborted);
            }
            match lane.finish(*stream, waiters) {
                Ok(true) => return Ok(()),
                Ok(false) => waiters.writable.wait().await,
                // The peer wants no more, and what it had not taken yet is dropped.
                Err(_) if lane.is_open() => {
                    self.stopped.set(true);
                    return Ok(());
                }
                Err(error) => return Err(self.abort(error)),
            }
        }
    }

    /// The peer's socket does not take what ours sends. What it has sent still comes through.
    fn peer_stopped(&self, error: FlowError) -> Result<(), Stop> {
        if self.flow.lane.is_open() {
            Err(Stop::DirectionOver)
        } else {
            Err(self.abort(error))
        }
    }

    /// Waits for the socket, but also for the peer's STOP_SENDING and for the end of the flow or the lane.
    async fn wait_socket_readable(&self) -> Result<(), Stop> {
        let TcpFlow {
            socket,
            lane,
            stream,
            waiters,
            ..
        } = &self.flow;
        let mut readable = pin!(socket.readable());
        poll_fn(|cx| {
            if self.aborted.get().is_some() || self.abort_inward.poll(cx).is_ready() {
                return Poll::Ready(Err(Stop::Aborted));
            }
            while waiters.writable.poll(cx).is_ready() {
                if let StreamRoom::Stopped(error) = lane.room(*stream, 1, waiters)
                    && let Err(stop) = self.peer_stopped(error)
                {
                    return Poll::Ready(Err(stop));
                }
            }
            // An error is found again by the read that follows.
            readable.as_mut().poll(cx).map(|_ready| Ok(()))
        })
        .await
    }

    // ---- stream → socket -----------------------------------------------------------------------------------------

    async fn stream_to_socket(&self, early: Vec<u8>, early_fin: bool) {
        // The direction's own end is told to the peer where it happens.
        let _over = self.pump_outward(early, early_fin).await;
    }

    async fn pump_outward(&self, early: Vec<u8>, early_fin: bool) -> Result<(), Stop> {
        let TcpFlow {
            socket,
            lane,
            stream,
            waiters,
            ..
        } = &self.flow;
        self.write_socket(&early).await?;
        drop(early);
        if early_fin {
            let _gone = socket.shutdown_write();
            return Ok(());
        }
        let mut size = BlockSize::Small;
        let mut moved = 0;
        loop {
            if self.aborted.get().is_some() {
                return Err(Stop::Aborted);
            }
            let mut block = Block::take(size);
            match lane.read(*stream, block.bytes_mut(), waiters) {
                StreamRead::Bytes(read, fin) => {
                    size = size.after(read);
                    self.write_socket(&block.bytes()[..read]).await?;
                    if fin {
                        // A socket that is gone already is found by the other pump.
                        let _gone = socket.shutdown_write();
                        return Ok(());
                    }
                    moved += read;
                    if moved >= BYTES_PER_TURN {
                        moved = 0;
                        yield_now().await;
                    }
                }
                StreamRead::Blocked => {
                    drop(block);
                    moved = 0;
                    waiters.readable.wait().await;
                }
                StreamRead::Reset(error) => return Err(self.abort(error)),
            }
        }
    }

    async fn write_socket(&self, mut bytes: &[u8]) -> Result<(), Stop> {
        let TcpFlow {
            socket,
            lane,
            stream,
            counters,
            waiters,
            ..
        } = &self.flow;
        while !bytes.is_empty() {
            match socket.try_write(bytes) {
                Ok(written) => {
                    counters.tcp_bytes_out.add(written as u64);
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = pin!(socket.writable());
                    poll_fn(|cx| {
                        if self.aborted.get().is_some() || self.abort_outward.poll(cx).is_ready() {
                            return Poll::Ready(Err(Stop::Aborted));
                        }
                        // Also set at the end of the lane. A lost wake-up for data does no harm: after this write the
                        // stream is read before anything is waited for.
                        while waiters.readable.poll(cx).is_ready() {
                            if lane.end().is_some() {
                                return Poll::Ready(Err(self.abort(FlowError::Internal)));
                            }
                        }
                        writable.as_mut().poll(cx).map(|_ready| Ok(()))
                    })
                    .await?;
                }
                // The socket takes no more, but what it has sent may still be there to read. EPIPE: its peer had sent
                // a FIN before the reset (tcp_reset() in the kernel), so its bytes are complete. Anything else: not.
                Err(error) => {
                    self.broken.set(error.kind() != io::ErrorKind::BrokenPipe);
                    lane.stop(*stream, self.flow.reset_reason);
                    return Err(Stop::DirectionOver);
                }
            }
        }
        Ok(())
    }
}
