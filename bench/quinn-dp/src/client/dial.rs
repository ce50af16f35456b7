//! TCP flows on the client: from a stream that the server opened to a connection with the service.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use qmux_proto::{FlowError, OpenHeader, Protocol};
use quinn::SendStream;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, trace};

use super::Shared;
use crate::lane::Lane;
use crate::receiver::Receiver;
use crate::relay::{self, FlowEnd};

/// How long the service may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the Open header may take to arrive; the server sends it in one piece.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts flows until the lane ends.
pub(super) async fn accept_flows(lane: &Arc<Lane>, shared: &Arc<Shared>) {
    while let Ok((send, recv)) = lane.connection.accept_bi().await {
        let recv = Receiver::new(recv, &lane.receivers);
        let (lane, shared) = (Arc::clone(lane), Arc::clone(shared));
        // The flow is counted here and not in its task, so that draining cannot overlook it.
        let counted = shared.tcp_flows.open();
        tokio::spawn(async move {
            let _counted = counted;
            let end = serve(send, recv, &lane, &shared).await;
            debug!(?end, "TCP flow ended");
        });
    }
}

async fn serve(mut send: SendStream, mut recv: Receiver, lane: &Lane, shared: &Shared) -> FlowEnd {
    let opening = async {
        let early = timeout(HEADER_TIMEOUT, read_header(&mut recv))
            .await
            .unwrap_or(Err(FlowError::ProtocolViolation))?;
        Ok((early, dial(shared).await?))
    };
    match opening.await {
        Ok((early, socket)) => {
            let reason = FlowError::ServiceReset;
            relay::run(socket, (send, recv), early, reason, &lane.connection).await
        }
        Err(error) => {
            relay::refuse(&mut send, &mut recv, error);
            FlowEnd::Reset(error)
        }
    }
}

/// Reads the Open header. Returns those of the visitor's bytes that were read along with it.
async fn read_header(recv: &mut Receiver) -> Result<Bytes, FlowError> {
    let mut bytes = Bytes::new();
    loop {
        let mut piece = [Bytes::new()];
        recv.read(&mut piece)
            .await
            .map_err(|_| FlowError::Internal)?
            .ok_or(FlowError::ProtocolViolation)?;
        let [piece] = piece;
        bytes = join(bytes, piece);
        let decoded = OpenHeader::decode(&bytes).map_err(|_| FlowError::ProtocolViolation)?;
        if let Some((header, header_bytes)) = decoded {
            trace!(?header, "flow opened");
            if header.protocol != Protocol::Tcp {
                return Err(FlowError::ProtocolViolation);
            }
            return Ok(bytes.split_off(header_bytes));
        }
    }
}

/// Joins two pieces of a stream. The header almost always arrives in one piece: then `before` is
/// empty, and nothing is copied.
fn join(before: Bytes, after: Bytes) -> Bytes {
    if before.is_empty() {
        return after;
    }
    let mut joined = BytesMut::from(before);
    joined.extend_from_slice(&after);
    joined.freeze()
}

async fn dial(shared: &Shared) -> Result<TcpStream, FlowError> {
    let service = (shared.local.0.as_str(), shared.local.1);
    match timeout(DIAL_TIMEOUT, TcpStream::connect(service)).await {
        Ok(Ok(socket)) => {
            // If the service has closed the connection already, the relay notices.
            let _gone = socket.set_nodelay(true);
            Ok(socket)
        }
        Ok(Err(error)) => {
            debug!(%error, "the service cannot be dialled");
            Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => FlowError::DialRefused,
                io::ErrorKind::TimedOut => FlowError::DialTimeout,
                _ => FlowError::DialFailed,
            })
        }
        Err(_) => Err(FlowError::DialTimeout),
    }
}
