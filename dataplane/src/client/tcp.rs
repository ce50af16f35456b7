//! A TCP flow on the client: reads the Open header, dials the service, then pumps.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use qmux_config::ProxyProtocol;
use qmux_proto::open::OPEN_HEADER_BYTES_MAX;
use qmux_proto::{FlowError, OpenHeader, Protocol};

use super::lane::ClientLane;
use super::services::health::connect;
use super::services::proxy_header;
use super::services::{ServedFlow, Service, VisitorPort};
use crate::core::FlowCount;
use crate::flow::fill::Until;
use crate::flow::tcp::{self, Begun, TcpFlow, TcpFlowEnd};
use crate::flow::watch::FlowWatch;
use crate::quic::lane::{StreamFront, StreamRead, StreamWaiters};
use crate::sys::limits;
use crate::sys::tcp::{FirstBytes, TcpSocket};

/// How long the service may take to accept a connection: a visitor waits for it, and a SYN is
/// repeated after 1 and 3 seconds (tcp(7)).
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a flow waits for the server's answer about the services, without which its port is not
/// known. The answer was sent before the flow, and comes later only if packets were lost.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two checks whether the answer has come.
const ANSWERS_POLL: Duration = Duration::from_millis(5);

/// Bytes read together with the Open header. A visitor's first request mostly fits.
const FIRST_READ_BYTES: usize = OPEN_HEADER_BYTES_MAX + 1_536;

/// Runs the flow on `stream` to its end.
pub(super) fn run(lane: Rc<ClientLane>, stream: u64) -> impl Future<Output = ()> + 'static {
    // This happens at once, before the task has its first turn: later data of the stream belongs to
    // this flow, and a client that stops must count it.
    let waiters = lane.quic.attach(stream);
    let counts = (FlowCount::new(&lane.context.core), lane.count_flow());
    async move {
        carry(lane, stream, waiters).await;
        drop(counts);
    }
}

async fn carry(lane: Rc<ClientLane>, stream: u64, waiters: Rc<StreamWaiters>) {
    let stall_timeout = lane.shared.settings().config.limits.stall_timeout;
    let watch = lane.context.flows.register(stall_timeout);
    watch.rides(lane.quic.key(), stream);
    lane.context.counters.tcp_flows_opened.increment();
    // This is on the heap because it is large, and over long before the flow is.
    let opened = match Box::pin(open(&lane, stream, &waiters, &watch)).await {
        Ok(opened) => opened,
        Err(error) => {
            lane.quic.reset(stream, error);
            lane.quic.stop(stream, error);
            lane.quic.detach(stream);
            lane.context.counters.tcp_flows_reset.increment();
            return;
        }
    };
    let flow = TcpFlow {
        socket: opened.socket,
        lane: Rc::clone(&lane.quic),
        stream,
        waiters,
        reset_reason: FlowError::ServiceReset,
        watch,
        counters: Arc::clone(&lane.context.counters),
        service: None,
        bandwidth: None,
    };
    let begun = Begun {
        early: opened.early,
        own_bytes: opened.own_bytes,
        early_fin: opened.fin,
        // Few services send first.
        empty: true,
        first: if opened.service.closes_behind_answer() {
            Until::Empty
        } else {
            Until::Short
        },
        ..Begun::default()
    };
    let visitor = opened.header.visitor;
    let served = ServedFlow::new(&opened.service);
    tracing::debug!(%visitor, "flow opened");
    let tcp::Ended {
        how,
        bytes_in,
        bytes_out,
        closed_behind_first,
    } = tcp::run(flow, begun).await;
    opened.service.note_close(closed_behind_first);
    drop(served);
    tracing::debug!(%visitor, %how, bytes_in, bytes_out, "flow ended");
    match how {
        TcpFlowEnd::Completed | TcpFlowEnd::Reset(_) => {}
        TcpFlowEnd::Stalled => {
            if let Some(suppressed) = lane.context.stall_log.pass(Instant::now()) {
                tracing::warn!(
                    service = %opened.service,
                    %visitor,
                    ?stall_timeout,
                    suppressed,
                    "the service has taken no byte for stall_timeout; flow reset"
                );
            }
        }
    }
}

struct Dialled {
    header: OpenHeader,
    service: Arc<Service>,
    socket: TcpSocket,
    /// The bytes that the service gets first: the PROXY header, if it wants one, and what came
    /// behind the Open header.
    early: Vec<u8>,
    /// The length of the PROXY header.
    own_bytes: usize,
    fin: bool,
}

async fn open(
    lane: &ClientLane,
    stream: u64,
    waiters: &StreamWaiters,
    watch: &FlowWatch,
) -> Result<Dialled, FlowError> {
    let mut bytes = Vec::with_capacity(FIRST_READ_BYTES);
    loop {
        let used = bytes.len();
        bytes.resize(FIRST_READ_BYTES, 0);
        let (read, fin) = match lane.quic.read(stream, &mut bytes[used..], waiters) {
            StreamRead::Bytes(read, fin) => (read, fin),
            StreamRead::Blocked => {
                bytes.truncate(used);
                waiters.readable.wait().await;
                continue;
            }
            StreamRead::Reset(error) => return Err(error),
        };
        bytes.truncate(used + read);
        match OpenHeader::decode(&bytes) {
            Ok(Some((header, length))) => {
                if header.protocol != Protocol::Tcp {
                    return Err(FlowError::ProtocolViolation);
                }
                let visitor = Visitor {
                    lane,
                    stream,
                    waiters,
                    watch,
                    all_read: Cell::new(fin),
                };
                let has_written = bytes.len() > length;
                let reach = reach(lane, &header, has_written);
                let (service, socket) = visitor.while_there(reach).await?;
                let fin = visitor.all_read.get();
                let mut early = before_visitor(&service, &header);
                let own_bytes = early.len();
                early.extend_from_slice(&bytes[length..]);
                return Ok(Dialled {
                    header,
                    service,
                    socket,
                    early,
                    own_bytes,
                    fin,
                });
            }
            Ok(None) if !fin => {}
            Ok(None) | Err(_) => {
                if let Some(suppressed) = lane.context.connect_log.pass(Instant::now()) {
                    tracing::warn!(
                        lane = lane.quic.key(),
                        suppressed,
                        "a stream without a valid Open header; flow reset"
                    );
                }
                return Err(FlowError::ProtocolViolation);
            }
        }
    }
}

/// The bytes that the service gets before those of a visitor.
fn before_visitor(service: &Service, header: &OpenHeader) -> Vec<u8> {
    let OpenHeader {
        visitor, traffic, ..
    } = *header;
    let version = service.local.proxy_protocol;
    proxy_header::of_visitor(version, Protocol::Tcp, visitor, traffic)
}

/// The visitor of a flow whose service is being dialled, as far as its stream shows it.
struct Visitor<'a> {
    lane: &'a ClientLane,
    stream: u64,
    waiters: &'a StreamWaiters,
    watch: &'a FlowWatch,
    /// Whether the FIN of the stream has been read.
    all_read: Cell<bool>,
}

impl Visitor<'_> {
    /// Runs `dial`, but not beyond the end of the lane, nor longer than the visitor waits: one who
    /// has reset its connection, even after its FIN, wants no connection to the service.
    async fn while_there<T>(
        &self,
        dial: impl Future<Output = Result<T, FlowError>>,
    ) -> Result<T, FlowError> {
        let mut dial = pin!(dial);
        poll_fn(|cx| {
            if let Some(reason) = self.gone(cx) {
                return Poll::Ready(Err(reason));
            }
            dial.as_mut().poll(cx)
        })
        .await
    }

    /// The reason why nobody waits for the service any more, if that is so. The same events wake
    /// this flow as in [`tcp`]; the pumps, when they begin, look at the stream before they wait for
    /// it.
    fn gone(&self, cx: &mut Context<'_>) -> Option<FlowError> {
        self.watch.attend(cx);
        let mut woken = self.watch.take_look().is_some();
        // Each is polled until it is pending, because an event that was ready wakes nobody the next
        // time.
        for event in [&self.waiters.readable, &self.waiters.writable] {
            while event.poll(cx).is_ready() {
                woken = true;
            }
        }
        if let Some(reason) = self.watch.told() {
            return Some(reason);
        }
        if !woken {
            return None;
        }
        let quic = &self.lane.quic;
        if let Some(reason) = quic.stopped(self.stream) {
            return Some(reason);
        }
        if self.all_read.get() {
            return None;
        }
        match quic.front(self.stream) {
            StreamFront::Open => {}
            StreamFront::Fin => self.all_read.set(true),
            StreamFront::Reset(reason) => return Some(reason),
        }
        None
    }
}

/// Finds the service that the visitor wants, and connects to it. `has_written` says whether the
/// visitor has sent bytes already.
async fn reach(
    lane: &ClientLane,
    header: &OpenHeader,
    has_written: bool,
) -> Result<(Arc<Service>, TcpSocket), FlowError> {
    let Some(service) = lane.settings.services.find(&header.service, Protocol::Tcp) else {
        return Err(refused_unknown(lane, header));
    };
    let port = port(lane, header, service).await?;
    let has_header = service.local.proxy_protocol != ProxyProtocol::Off;
    let first = FirstBytes::ready_if(has_written || has_header);
    let socket = dial(lane, header, service, port, first).await?;
    Ok((Arc::clone(service), socket))
}

/// The port of the service for the visitor. The server's answer about its ports may come after the
/// first visitor.
async fn port(lane: &ClientLane, header: &OpenHeader, service: &Service) -> Result<u16, FlowError> {
    let deadline = Instant::now() + ANSWERS_TIMEOUT;
    let traffic = header.traffic.port();
    loop {
        let there = lane.answers.ports(service.index);
        match service.port_for(Some(traffic), there) {
            VisitorPort::Known(port) => return Ok(port),
            VisitorPort::NotYet if Instant::now() < deadline => {
                crate::core::time::sleep(ANSWERS_POLL).await;
            }
            VisitorPort::NotYet | VisitorPort::Missing => {
                service.counts.flows_without_port.increment();
                lane.context.counters.tcp_flows_without_port.increment();
                if let Some(suppressed) = lane.context.dial_log.pass(Instant::now()) {
                    tracing::warn!(
                        %service, visitor = %header.visitor, traffic, suppressed,
                        "no port of this service belongs to the visitor's traffic port; flow \
                         refused. Give the service as many ports as at the server, or \"same\""
                    );
                }
                return Err(FlowError::DialFailed);
            }
        }
    }
}

/// Refuses a flow for a service that is not offered, or not for TCP. Another client may have it.
fn refused_unknown(lane: &ClientLane, header: &OpenHeader) -> FlowError {
    lane.context.counters.tcp_flows_unknown_service.increment();
    if let Some(suppressed) = lane.context.dial_log.pass(Instant::now()) {
        tracing::warn!(
            server = %lane.server, service = header.service, visitor = %header.visitor, suppressed,
            "the server sends a TCP visitor for a service that is not offered; flow refused"
        );
    }
    FlowError::DialFailed
}

/// Connects to the service, and notes whether that works. What this machine lacks for it says
/// nothing about the service.
async fn dial(
    lane: &ClientLane,
    header: &OpenHeader,
    service: &Service,
    port: u16,
    first: FirstBytes,
) -> Result<TcpSocket, FlowError> {
    let began = Instant::now();
    let result = connect(service, port, first, DIAL_TIMEOUT).await;
    if result.is_ok() {
        let histograms = &lane.context.histograms;
        histograms.dial_seconds.observe_time(began.elapsed());
    }
    if let Err(error) = &result
        && limits::is_own_want(error)
    {
        return Err(refused_for_own_want(lane, header, error));
    }
    if service.stands_for_all(port) {
        let worked = result.is_ok();
        service.state.dialled(worked, service, &lane.context);
    }
    let last = match result {
        Ok(socket) => {
            service.counts.tcp_flows.increment();
            return Ok(socket);
        }
        Err(error) => error,
    };
    service.counts.dials_failed.increment();
    lane.context.counters.tcp_dials_failed.increment();
    let reason = match last.kind() {
        io::ErrorKind::ConnectionRefused => FlowError::DialRefused,
        io::ErrorKind::TimedOut => FlowError::DialTimeout,
        _ => FlowError::DialFailed,
    };
    if let Some(suppressed) = lane.context.dial_log.pass(Instant::now()) {
        let visitor = header.visitor;
        tracing::warn!(
            %service,
            port,
            %visitor,
            error = %last,
            %reason,
            suppressed,
            "the service cannot be reached; flow reset"
        );
    }
    Err(reason)
}

fn refused_for_own_want(lane: &ClientLane, header: &OpenHeader, error: &io::Error) -> FlowError {
    lane.context
        .counters
        .tcp_dials_refused_own_limits
        .increment();
    if let Some(suppressed) = lane.context.dial_log.pass(Instant::now()) {
        tracing::warn!(
            visitor = %header.visitor,
            %error,
            suppressed,
            "this machine or process has no descriptor, port or memory left for a connection to the \
             service; flow refused"
        );
    }
    FlowError::LimitReached
}
