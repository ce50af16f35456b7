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

mod ending;
mod inward;
mod outward;

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use qmux_proto::FlowError;

use crate::buffer::{LARGE_BLOCK_BYTES, StreamBuf};
use crate::core::counters::CoreCounters;
use crate::core::service_counters::ServiceCounters;
use crate::core::time;
use crate::quic::lane::{Lane, StreamWaiters};
use crate::sys::tcp::TcpSocket;

use super::bandwidth::{Bandwidth, Direction};
pub(crate) use super::ended::{Ended, TcpFlowEnd};
use super::fill::Until;
use super::watch::{FlowWatch, LOOK_INTERVAL, Waits};
use inward::Beginning;

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

    /// Waits for `ready` alone; everything else that matters is handled at each turn of the flow's
    /// task.
    async fn wait<T>(direction: &Cell<Waits>, waits: Waits, ready: impl Future<Output = T>) -> T {
        direction.set(waits);
        let result = ready.await;
        direction.set(Waits::Moving);
        result
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
}
