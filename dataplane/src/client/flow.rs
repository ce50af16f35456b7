//! A TCP flow on the client: read the Open header, dial the service, then pump.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::open::OPEN_HEADER_BYTES_MAX;
use qmux_proto::{FlowError, OpenHeader, Protocol};

use super::lane::ClientLane;
use super::service::connect;
use crate::core::FlowCount;
use crate::flow::tcp::{self, Begun, TcpFlow, TcpFlowEnd};
use crate::quic::lane::{StreamRead, StreamWaiters};
use crate::resolve::Name;
use crate::sys::tcp::TcpSocket;

/// How long the service may take to accept a connection: a visitor waits for it, and a SYN is repeated after 1 and 3
/// seconds (tcp(7)).
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a flow that dials looks whether its lane still lives.
const LANE_CHECK: Duration = Duration::from_millis(500);

/// Bytes read together with the Open header. A visitor's first request mostly fits.
const FIRST_READ_BYTES: usize = OPEN_HEADER_BYTES_MAX + 1_536;

/// Runs the flow on `stream` to its end.
pub(super) async fn run(this: Rc<ClientLane>, stream: u64) {
    let _count = FlowCount::new(&this.context);
    let _of_lane = this.count_flow();
    let waiters = this.lane.attach(stream);
    this.context.counters.tcp_flows_opened.increment();
    // On the heap, as it is large, and over long before the flow is.
    let opened = match Box::pin(open(&this, stream, &waiters)).await {
        Ok(opened) => opened,
        Err(error) => {
            this.lane.reset(stream, error);
            this.lane.stop(stream, error);
            this.lane.detach(stream);
            this.context.counters.tcp_flows_reset.increment();
            return;
        }
    };
    let flow = TcpFlow {
        socket: opened.socket,
        lane: Rc::clone(&this.lane),
        stream,
        waiters,
        reset_reason: FlowError::ServiceReset,
        counters: Arc::clone(&this.context.counters),
    };
    let begun = Begun {
        early: opened.early,
        early_fin: opened.fin,
        ..Begun::default()
    };
    if let TcpFlowEnd::Reset(reason) = tcp::run(flow, begun).await {
        tracing::debug!(visitor = %opened.header.visitor, %reason, "flow reset");
    }
}

struct Opened {
    header: OpenHeader,
    socket: TcpSocket,
    /// What came behind the header.
    early: Vec<u8>,
    fin: bool,
}

async fn open(
    this: &ClientLane,
    stream: u64,
    waiters: &StreamWaiters,
) -> Result<Opened, FlowError> {
    let mut bytes = Vec::with_capacity(FIRST_READ_BYTES);
    loop {
        let used = bytes.len();
        bytes.resize(FIRST_READ_BYTES, 0);
        let (read, fin) = match this.lane.read(stream, &mut bytes[used..], waiters) {
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
                let socket = while_lane_lives(this, dial(this, &header)).await?;
                bytes.drain(..length);
                return Ok(Opened {
                    header,
                    socket,
                    early: bytes,
                    fin,
                });
            }
            Ok(None) if !fin => {}
            Ok(None) | Err(_) => {
                if let Some(suppressed) = this.context.connect_log.pass(Instant::now()) {
                    tracing::warn!(
                        lane = this.lane.key(),
                        suppressed,
                        "a stream without a valid Open header; flow reset"
                    );
                }
                return Err(FlowError::ProtocolViolation);
            }
        }
    }
}

/// Runs `dial`, but not beyond the end of the lane.
async fn while_lane_lives(
    this: &ClientLane,
    dial: impl Future<Output = Result<TcpSocket, FlowError>>,
) -> Result<TcpSocket, FlowError> {
    let mut dial = pin!(dial);
    loop {
        match crate::core::time::timeout(LANE_CHECK, dial.as_mut()).await {
            Ok(result) => return result,
            Err(_elapsed) if !this.lane.is_open() => return Err(FlowError::Internal),
            Err(_elapsed) => {}
        }
    }
}

/// Connects to the service, and takes note of whether that works.
async fn dial(this: &ClientLane, header: &OpenHeader) -> Result<TcpSocket, FlowError> {
    let service: &Name = &this.shared.service;
    let result = connect(service, DIAL_TIMEOUT).await;
    this.shared
        .service_state
        .dialled(result.is_ok(), service, &this.context);
    let last = match result {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    this.context.counters.tcp_dials_failed.increment();
    let reason = match last.kind() {
        io::ErrorKind::ConnectionRefused => FlowError::DialRefused,
        io::ErrorKind::TimedOut => FlowError::DialTimeout,
        _ => FlowError::DialFailed,
    };
    if let Some(suppressed) = this.context.dial_log.pass(Instant::now()) {
        tracing::warn!(%service, visitor = %header.visitor, error = %last, %reason, suppressed, "the service cannot be reached; flow reset");
    }
    Err(reason)
}
