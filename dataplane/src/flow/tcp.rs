//! A TCP flow: one socket, one stream, two pumps. It is the same on both sides of the tunnel.
//!
//! Each pump moves bytes one way with back-pressure end to end: nothing is read before there is
//! room for it, and an idle flow holds no buffer. FIN maps to `shutdown(SHUT_WR)` and back, in each
//! direction on its own. A socket's reset becomes RESET_STREAM and STOP_SENDING, and these become a
//! reset of the other socket, so that the far side never sees a clean end with bytes missing.
//!
//! A pump waits for one thing at a time ([`Flow::wait`]) and knows nothing of what else can happen.
//! That is handled in one place, at each turn of the flow's task and whatever the pumps wait for
//! ([`Flow::look_around`], [`Flow::hear_peer`]): a reset or a stop by the peer, the end of the
//! lane, an error of the socket, an order to end, a socket that takes nothing for too long. What
//! ends the flow drops both pumps where they are.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use qmux_proto::FlowError;

use crate::buffer::{Block, BlockSize, LARGE_BLOCK_BYTES, StreamBuf};
use crate::core::counters::CoreCounters;
use crate::core::event::yield_now;
use crate::core::service_counters::ServiceCounters;
use crate::core::time;
use crate::quic::lane::{Lane, StreamFront, StreamRead, StreamRoom, StreamWaiters};
use crate::sys::tcp::TcpSocket;

use super::bandwidth::{Bandwidth, Direction};
pub(crate) use super::ended::{Ended, TcpFlowEnd};
use super::fill::{Next, Until, fill};
use super::watch::{FlowWatch, LOOK_INTERVAL, Waits};

/// Bytes that one pump moves before the core's other tasks get a turn.
const BYTES_PER_TURN: usize = 2 * LARGE_BLOCK_BYTES;

/// A flow's two ends.
pub(crate) struct TcpFlow {
    /// The visitor's or the service's socket.
    pub(crate) socket: TcpSocket,
    /// The lane that carries the flow.
    pub(crate) lane: Rc<Lane>,
    /// The flow's stream on that lane.
    pub(crate) stream: u64,
    /// The waiters of that stream, from [`Lane::attach`].
    pub(crate) waiters: Rc<StreamWaiters>,
    /// The reason that the peer is told when our socket is reset.
    pub(crate) reset_reason: FlowError,
    /// The flow's place among those of the core.
    pub(crate) watch: FlowWatch,
    /// The core's counters.
    pub(crate) counters: Arc<CoreCounters>,
    /// On a server, the counters of the visitor's service.
    pub(crate) service: Option<Arc<ServiceCounters>>,
    /// The bandwidth of the flow, if it is limited.
    pub(crate) bandwidth: Option<Box<Bandwidth>>,
}

/// What was done for a flow before its pumps start.
#[derive(Default)]
pub(crate) struct Begun {
    /// Bytes that were read from the stream and not written to the socket.
    pub(crate) early: Vec<u8>,
    /// Number of bytes at the front of these that are ours, and not the visitor's.
    pub(crate) own_bytes: usize,
    /// Whether the stream has ended behind them.
    pub(crate) early_fin: bool,
    /// Bytes that were read from the socket and not written to the stream.
    pub(crate) unsent: VecDeque<StreamBuf>,
    /// Whether the socket has ended behind them.
    pub(crate) ended: bool,
    /// Whether that FIN has been sent on the stream as well.
    pub(crate) fin_sent: bool,
    /// Whether the socket had nothing when it was last looked at, or is not likely to: then it is
    /// waited for before it is read.
    pub(crate) empty: bool,
    /// How the socket's first bytes are read: a socket that closes behind them is best read until
    /// it is empty.
    pub(crate) first: Until,
    /// Bytes read from the socket so far.
    pub(crate) bytes_in: u64,
}

/// The part of [`Begun`] that concerns the pump from the socket.
struct Beginning {
    unsent: VecDeque<StreamBuf>,
    ended: bool,
    empty: bool,
    first: Until,
}

/// A pump has stopped before its direction's FIN.
struct Stopped;

/// Runs the flow to its end.
pub(crate) async fn run(ends: TcpFlow, begun: Begun) -> Ended {
    let flow = Flow {
        ends,
        aborted: Cell::new(None),
        stalled: Cell::new(false),
        stopped: Cell::new(None),
        cut: Cell::new(false),
        broken: Cell::new(false),
        fin_read: Cell::new(false),
        closed_behind_first: Cell::new(false),
        own_bytes: begun.own_bytes as u64,
        bytes_in: Cell::new(begun.bytes_in),
        bytes_out: Cell::new(0),
    };
    flow.pay(Direction::In, begun.bytes_in);
    if begun.fin_sent {
        flow.inward().set(Waits::Over);
    }
    {
        let mut inward = pin!(flow.socket_to_stream(Beginning {
            unsent: begun.unsent,
            ended: begun.ended,
            empty: begun.empty,
            first: begun.first,
        }));
        let mut outward = pin!(flow.stream_to_socket(begun.early, begun.early_fin));
        poll_fn(|cx| {
            flow.look_around(cx);
            if flow.goes_on(flow.inward()) && inward.as_mut().poll(cx).is_ready() {
                flow.inward().set(Waits::Over);
            }
            if flow.goes_on(flow.outward()) && outward.as_mut().poll(cx).is_ready() {
                flow.outward().set(Waits::Over);
            }
            flow.hear_peer(cx);
            if flow.goes_on(flow.inward()) || flow.goes_on(flow.outward()) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
    Ended {
        how: flow.end(),
        bytes_in: flow.bytes_in.get(),
        bytes_out: flow.bytes_out.get(),
        closed_behind_first: flow.closed_behind_first.get(),
    }
}

/// A flow while its pumps run.
struct Flow {
    ends: TcpFlow,
    /// Set when the flow must end in both directions at once.
    aborted: Cell<Option<FlowError>>,
    /// Whether that was because our socket took nothing for too long.
    stalled: Cell<bool>,
    /// The reason why the peer wanted no more of what our socket still sends.
    stopped: Cell<Option<FlowError>>,
    /// Whether our socket took no more, although the stream had not ended.
    cut: Cell<bool>,
    /// Whether a write met the socket's reset and so took the error away from the next read, which
    /// then looks like a FIN.
    broken: Cell<bool>,
    /// Whether the stream's FIN was read while bytes before it wait for the socket.
    fin_read: Cell<bool>,
    /// See [`Ended::closed_behind_first`].
    closed_behind_first: Cell<bool>,
    /// Number of bytes of ours that the socket gets before those of the visitor.
    own_bytes: u64,
    /// See [`Ended::bytes_in`].
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

impl Flow {
    fn inward(&self) -> &Cell<Waits> {
        self.ends.watch.inward()
    }

    fn outward(&self) -> &Cell<Waits> {
        self.ends.watch.outward()
    }

    /// Whether a pump is to run.
    fn goes_on(&self, direction: &Cell<Waits>) -> bool {
        self.aborted.get().is_none() && direction.get() != Waits::Over
    }

    fn end(&self) -> TcpFlowEnd {
        let TcpFlow {
            socket,
            lane,
            stream,
            counters,
            ..
        } = &self.ends;
        lane.detach(*stream);
        let cut = self.cut.get().then_some(self.ends.reset_reason);
        // If a flow was stopped or cut, somebody has sent what nobody took, and a clean close would
        // claim otherwise.
        let error = self.aborted.get().or(self.stopped.get()).or(cut);
        let Some(error) = error else {
            socket.close_with_fin();
            counters.tcp_flows_completed.increment();
            return TcpFlowEnd::Completed;
        };
        counters.tcp_flows_reset.increment();
        if self.stalled.get() {
            counters.tcp_flows_stalled.increment();
            return TcpFlowEnd::Stalled;
        }
        TcpFlowEnd::Reset(error)
    }

    /// Counts bytes that came from the socket.
    fn count_in(&self, bytes: u64) {
        self.ends.watch.has_moved();
        self.ends.counters.tcp_bytes_in.add(bytes);
        if let Some(service) = &self.ends.service {
            service.tcp_bytes_in.add(bytes);
        }
        self.bytes_in.set(self.bytes_in.get() + bytes);
        self.pay(Direction::In, bytes);
    }

    /// Counts bytes that went into the socket.
    fn count_out(&self, bytes: u64) {
        self.ends.watch.has_moved();
        self.ends.counters.tcp_bytes_out.add(bytes);
        if let Some(service) = &self.ends.service {
            service.tcp_bytes_out.add(bytes);
        }
        self.bytes_out.set(self.bytes_out.get() + bytes);
        self.pay(Direction::Out, bytes);
    }

    // ---- bandwidth ----

    fn pay(&self, way: Direction, bytes: u64) {
        if let Some(bandwidth) = &self.ends.bandwidth {
            bandwidth.carried(way, bytes, Instant::now());
        }
    }

    /// Waits until more may be carried in this direction; returns how much.
    async fn allowed(&self, way: Direction, direction: &Cell<Waits>) -> usize {
        let Some(bandwidth) = &self.ends.bandwidth else {
            return usize::MAX;
        };
        let mut has_waited = false;
        loop {
            let now = Instant::now();
            let at = match bandwidth.ask(way, now) {
                Ok(bytes) => return bytes,
                Err(at) => at,
            };
            if !has_waited {
                self.ends.counters.tcp_bandwidth_waits.increment();
                has_waited = true;
            }
            // A flow that may not move is not idle.
            self.ends.watch.has_moved();
            let pause = time::sleep_until(at.min(now + LOOK_INTERVAL));
            Self::wait(direction, Waits::Bandwidth, pause).await;
        }
    }

    // ---- what ends a flow ----

    /// Ends both directions: the stream is reset and stopped, and the socket will be reset.
    fn abort(&self, error: FlowError) {
        if self.aborted.get().is_none() {
            self.aborted.set(Some(error));
            let TcpFlow { lane, stream, .. } = &self.ends;
            lane.reset(*stream, error);
            lane.stop(*stream, error);
        }
    }

    /// Ends the inward direction, because the peer's socket does not take what ours sends. What the
    /// peer has sent still comes through.
    fn stop_inward(&self, error: FlowError) {
        let TcpFlow { lane, stream, .. } = &self.ends;
        if lane.is_open() {
            self.stopped.set(Some(error));
            self.inward().set(Waits::Over);
            lane.reset(*stream, self.ends.reset_reason);
        } else {
            self.abort(error);
        }
    }

    /// Ends the outward direction, because our socket takes no more although the stream has not
    /// ended.
    fn cut_outward(&self) {
        let TcpFlow {
            lane,
            stream,
            watch,
            ..
        } = &self.ends;
        watch.socket_took(); // Nothing waits for it any more.
        self.cut.set(true);
        self.outward().set(Waits::Over);
        lane.stop(*stream, self.ends.reset_reason);
    }

    /// Handles a reset of the socket. EPIPE means that its peer had sent a FIN before (tcp_reset()
    /// in the kernel), so the bytes that are still to be read are complete and are carried. That is
    /// how a program ends that has no use for an answer.
    fn socket_failed(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe && self.goes_on(self.inward()) {
            if self.goes_on(self.outward()) {
                self.cut_outward();
            }
        } else {
            self.abort(self.ends.reset_reason);
        }
    }

    /// Checks for orders, and for what wakes nobody, when the core's table of flows says so.
    fn look_around(&self, cx: &mut Context<'_>) {
        let TcpFlow {
            socket,
            waiters,
            watch,
            ..
        } = &self.ends;
        watch.attend(cx);
        if let Some(reason) = watch.told() {
            self.abort(reason);
        }
        let Some(step) = watch.take_look() else {
            return;
        };
        socket.keep_alive();
        // A pump that waits for the socket's bytes finds an error by itself, behind those bytes.
        if self.inward().get() != Waits::Socket
            && let Some(error) = socket.take_error()
        {
            self.socket_failed(&error);
        }
        if watch.is_stalled() && watch.has_stalled(step, socket.untaken_bytes()) {
            self.stalled.set(true);
            return self.abort(FlowError::Stalled);
        }
        // Whoever waits for these events, a pump or `hear_peer`, asks the stream again.
        waiters.readable.set();
        waiters.writable.set();
    }

    /// Handles what the peer does to the stream while a pump waits for the socket, or for its
    /// bandwidth; a pump that waits for the stream finds it out by itself. No wake-up is lost for
    /// the pumps, which try the stream before they wait for it.
    fn hear_peer(&self, cx: &mut Context<'_>) {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        while self.aborted.get().is_none()
            && self.outward().get().is_apart_from_the_stream()
            && waiters.readable.poll(cx).is_ready()
        {
            if self.fin_read.get() {
                if lane.end().is_some() {
                    self.abort(FlowError::Internal);
                }
                continue;
            }
            match lane.front(*stream) {
                StreamFront::Open => {}
                StreamFront::Fin => self.fin_read.set(true),
                StreamFront::Reset(error) => self.abort(error),
            }
        }
        while self.aborted.get().is_none()
            && self.inward().get().is_apart_from_the_stream()
            && waiters.writable.poll(cx).is_ready()
        {
            if let Some(error) = lane.stopped(*stream) {
                self.stop_inward(error);
            }
        }
    }

    // ---- socket → stream ----

    async fn socket_to_stream(&self, beginning: Beginning) {
        // The reason is noted where it happens.
        let _early = self.pump_inward(beginning).await;
    }

    async fn pump_inward(&self, beginning: Beginning) -> Result<(), Stopped> {
        let TcpFlow { socket, .. } = &self.ends;
        for bytes in beginning.unsent {
            self.write_stream(bytes, false).await?;
        }
        if beginning.ended {
            return self.finish_stream().await;
        }
        if beginning.empty {
            self.wait_for_socket().await;
        }
        let mut size = BlockSize::Small;
        let mut moved = 0;
        // Counts reads that have brought bytes: many connections have one message and then their
        // end.
        let mut messages = usize::from(self.bytes_in.get() > 0);
        loop {
            let allowed = self.allowed(Direction::In, self.inward()).await;
            let room = self.wait_for_room().await?.min(allowed);
            let mut block = Block::take(size.within(room));
            let capacity = block.bytes().len().min(room);
            let until = match (size, messages) {
                (BlockSize::Small, 0) => beginning.first,
                (BlockSize::Small, _) => Until::Short,
                _ => Until::Empty,
            };
            let (read, mut next) = fill(socket, &mut block.bytes_mut()[..capacity], until);
            if self.broken.get() && matches!(next, Next::Fin) {
                next = Next::Error;
            }
            messages += usize::from(read > 0);
            if matches!(next, Next::Fin) && messages == 1 && !self.fin_read.get() {
                self.closed_behind_first.set(true);
            }
            if read > 0 {
                self.count_in(read as u64);
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
                    self.wait_for_socket().await;
                }
                Next::Fin => return self.finish_stream().await,
                Next::Error => {
                    self.abort(self.ends.reset_reason);
                    return Err(Stopped);
                }
            }
        }
    }

    /// Waits until the socket has something. The read that follows finds an error again.
    async fn wait_for_socket(&self) {
        let readable = self.ends.socket.readable();
        let _ready = Self::wait(self.inward(), Waits::Socket, readable).await;
    }

    /// Waits for `ready` alone; everything else that matters is handled at each turn of the flow's
    /// task.
    async fn wait<T>(direction: &Cell<Waits>, waits: Waits, ready: impl Future<Output = T>) -> T {
        direction.set(waits);
        let result = ready.await;
        direction.set(Waits::Moving);
        result
    }

    /// Gives all of `bytes` to the stream. There was room a moment ago; if quiche takes less, this
    /// waits for more.
    async fn write_stream(&self, bytes: StreamBuf, fin: bool) -> Result<(), Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        let mut rest = Some(bytes);
        while let Some(bytes) = rest.take() {
            rest = match lane.write(*stream, bytes, fin, waiters) {
                Ok(rest) => rest,
                Err(error) => {
                    self.stop_inward(error);
                    return Err(Stopped);
                }
            };
            if rest.is_some() {
                self.wait_for_room().await?;
            }
        }
        Ok(())
    }

    /// Waits until the stream takes at least one byte.
    async fn wait_for_room(&self) -> Result<usize, Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        loop {
            match lane.room(*stream, LARGE_BLOCK_BYTES, waiters) {
                StreamRoom::Bytes(room) => return Ok(room),
                StreamRoom::Blocked => {
                    Self::wait(self.inward(), Waits::Stream, waiters.writable.wait()).await;
                }
                StreamRoom::Stopped(error) => {
                    self.stop_inward(error);
                    return Err(Stopped);
                }
            }
        }
    }

    async fn finish_stream(&self) -> Result<(), Stopped> {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        loop {
            match lane.finish(*stream, waiters) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    Self::wait(self.inward(), Waits::Stream, waiters.writable.wait()).await;
                }
                // The peer wants no more, and what it had not taken yet is dropped.
                Err(error) => {
                    self.stop_inward(error);
                    return Err(Stopped);
                }
            }
        }
    }

    // ---- stream → socket ----

    async fn stream_to_socket(&self, early: Vec<u8>, early_fin: bool) {
        // The reason is noted where it happens.
        let _early = self.pump_outward(early, early_fin).await;
    }

    async fn pump_outward(&self, early: Vec<u8>, early_fin: bool) -> Result<(), Stopped> {
        let TcpFlow {
            socket,
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        self.fin_read.set(early_fin);
        self.write_socket(&early).await?;
        drop(early);
        let mut size = BlockSize::Small;
        let mut moved = 0;
        loop {
            let allowed = match self.fin_read.get() {
                true => 0,
                false => self.allowed(Direction::Out, self.outward()).await,
            };
            if self.fin_read.get() {
                // If both directions have ended, the socket is closed next, and that sends the FIN.
                if self.inward().get() != Waits::Over || self.stopped.get().is_some() {
                    // If the connection is gone already, the other pump notices.
                    let _gone = socket.shutdown_write();
                }
                return Ok(());
            }
            let mut block = Block::take(size);
            let capacity = block.bytes().len().min(allowed);
            match lane.read(*stream, &mut block.bytes_mut()[..capacity], waiters) {
                StreamRead::Bytes(read, fin) => {
                    size = size.after(read);
                    self.fin_read.set(fin);
                    self.write_socket(&block.bytes()[..read]).await?;
                    moved += read;
                    if moved >= BYTES_PER_TURN && !fin {
                        moved = 0;
                        yield_now().await;
                    }
                }
                StreamRead::Blocked => {
                    drop(block);
                    moved = 0;
                    Self::wait(self.outward(), Waits::Stream, waiters.readable.wait()).await;
                }
                StreamRead::Reset(error) => {
                    self.abort(error);
                    return Err(Stopped);
                }
            }
        }
    }

    async fn write_socket(&self, mut bytes: &[u8]) -> Result<(), Stopped> {
        let TcpFlow {
            socket,
            lane,
            watch,
            ..
        } = &self.ends;
        let (own, given) = (self.own_bytes, self.bytes_out.get());
        if self.bytes_in.get() == 0 && holds_first_byte(own, given, bytes.len()) {
            // A server that has heard nothing of these bytes gives them to another client when this
            // one dies, and no service must get them twice. So the server hears of them first.
            lane.acknowledge_now().await;
            if lane.end().is_some() {
                self.abort(FlowError::Internal);
                return Err(Stopped);
            }
        }
        while !bytes.is_empty() {
            match socket.try_write(bytes) {
                Ok(written) => {
                    watch.socket_took();
                    self.count_out(written as u64);
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch.socket_is_full();
                    // The write that follows finds an error again.
                    let _ready = Self::wait(self.outward(), Waits::Socket, socket.writable()).await;
                }
                // What the peer has sent may still be there to read. For EPIPE see `socket_failed`;
                // with any other error it is not complete.
                Err(error) => {
                    self.broken.set(error.kind() != io::ErrorKind::BrokenPipe);
                    self.cut_outward();
                    return Err(Stopped);
                }
            }
        }
        Ok(())
    }
}

/// Whether the first byte of the visitor is among the next `bytes` for the socket, which has got
/// `given` so far and gets `own` bytes before the visitor's.
fn holds_first_byte(own: u64, given: u64, bytes: usize) -> bool {
    given <= own && given + bytes as u64 > own
}

#[cfg(test)]
mod tests {
    use super::holds_first_byte;

    #[test]
    fn the_first_byte_of_a_visitor_is_told_from_those_before_and_behind_it() {
        assert!(holds_first_byte(0, 0, 1) && !holds_first_byte(0, 0, 0));
        assert!(!holds_first_byte(0, 1, 100));
        // A header of ours alone, and then the visitor's bytes; or both at once.
        assert!(!holds_first_byte(28, 0, 28) && holds_first_byte(28, 28, 1));
        assert!(holds_first_byte(28, 0, 29) && !holds_first_byte(28, 29, 1));
    }
}
