//! TCP visitors: from the accepted connection to a stream of a lane.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use qmux_proto::control::Capabilities;
use qmux_proto::{FlowError, OpenHeader, Protocol};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Listener;
use crate::receiver::Receiver;
use crate::relay::{self, FlowEnd};

/// How long a visitor waits for a stream when the client allows no more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when the process has no files left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

static NEXT_FLOW_ID: AtomicU64 = AtomicU64::new(1);

/// A flow id that was not used before.
pub(super) fn next_flow_id() -> u64 {
    NEXT_FLOW_ID.fetch_add(1, Ordering::Relaxed)
}

/// Accepts visitors for as long as it runs.
pub(super) async fn accept(socket: TcpListener, listener: Arc<Listener>) -> io::Result<()> {
    let traffic = socket.local_addr()?;
    loop {
        match socket.accept().await {
            Ok((socket, visitor)) => {
                let listener = Arc::clone(&listener);
                // The flow is counted here and not in its task, so that draining cannot overlook
                // it.
                let counted = listener.shared.tcp_flows.open();
                tokio::spawn(async move {
                    let _counted = counted;
                    let end = serve(socket, visitor, traffic, &listener).await;
                    debug!(%visitor, ?end, "TCP flow ended");
                });
            }
            Err(error) => {
                warn!(%traffic, %error, "accept failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(
    socket: TcpStream,
    visitor: SocketAddr,
    traffic: SocketAddr,
    listener: &Listener,
) -> FlowEnd {
    let refused = |error| {
        relay::reset_on_close(&socket);
        FlowEnd::Reset(error)
    };
    let Some(choice) = listener.registry.choose(Capabilities::TCP) else {
        return refused(FlowError::NoClient);
    };
    let _counted_for_client = choice.client_flows.open();
    let _counted_for_lane = choice.lane.lane.flows.open();
    let connection = &choice.lane.lane.connection;
    let (mut send, recv) = match timeout(OPEN_TIMEOUT, connection.open_bi()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) => return refused(FlowError::Internal),
        Err(_) => return refused(FlowError::LimitReached),
    };
    let header = open_header(visitor, socket.local_addr().unwrap_or(traffic));
    if send.write_chunk(header).await.is_err() {
        return refused(FlowError::Internal);
    }
    let recv = Receiver::new(recv, &choice.lane.lane.receivers);
    let reason = FlowError::VisitorReset;
    relay::run(socket, (send, recv), Bytes::new(), reason, connection).await
}

fn open_header(visitor: SocketAddr, traffic: SocketAddr) -> Bytes {
    let opened_at = SystemTime::now().duration_since(UNIX_EPOCH);
    let header = OpenHeader {
        flow_id: next_flow_id(),
        protocol: Protocol::Tcp,
        service: String::new(),
        visitor,
        traffic,
        // A clock before 1970 and one after the year 290,000 are as good as none.
        opened_at_us: opened_at.map_or(0, |age| u64::try_from(age.as_micros()).unwrap_or(0)),
    };
    let mut bytes = Vec::with_capacity(64);
    header.encode(&mut bytes);
    bytes.into()
}
