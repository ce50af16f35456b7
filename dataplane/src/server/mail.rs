//! What the server role of one core sends to that of another.

use std::net::{IpAddr, SocketAddr, TcpStream};

use crossbeam::channel::Sender;

use super::ids::{DoorId, EntranceId};
use super::pool::service::FlowTicket;
use super::shared::plan::CoreChanges;
use super::succession::Lent;
use super::tcp::visitor::Visitor;
use super::udp::forwarded::ForwardedUdp;
use crate::core::mailbox::{Kind, Mail};
use crate::flow::role::RoleContext;
use crate::quic::over_tls::TlsConnection;

/// The context of the server role on one core.
pub(crate) type ServerContext = RoleContext<ServerMail>;

/// One message between cores.
#[derive(Debug)]
pub(crate) enum ServerMail {
    /// A visitor whose client has no lane on the core that accepted the visitor.
    Visitor {
        /// The entrance that the visitor came to.
        entrance: EntranceId,
        /// The accepted socket.
        stream: TcpStream,
        /// The visitor's address, and what is known of the visitor.
        visitor: Box<Visitor>,
        /// The client that was chosen for the visitor.
        ticket: FlowTicket,
    },
    /// A datagram of a visitor whose flow lives on the receiving core.
    Datagram {
        /// The entrance that the datagram came to.
        entrance: EntranceId,
        /// The datagram.
        packet: ForwardedUdp,
    },
    /// A QUIC packet for a lane of the receiving core.
    Packet {
        /// The door whose socket received the packet.
        door: DoorId,
        /// The index of the address that it came to.
        address: usize,
        /// The packet.
        data: Vec<u8>,
        /// The sender's address.
        from: SocketAddr,
        /// The local address that it was sent to.
        to_ip: Option<IpAddr>,
        /// Number of packets passed on by a successor that were dropped before this one, for want
        /// of room.
        lost_before: u64,
    },
    /// A TLS connection that carries a lane of the receiving core.
    TlsConnection {
        /// The door whose socket accepted the connection.
        door: DoorId,
        /// The index of the address that it came to.
        address: usize,
        /// The connection.
        connection: Box<TlsConnection>,
    },
    /// A client was replaced by a newer instance. Its lanes take no new flow, and are closed if
    /// they do not answer.
    Evict {
        /// The door that the client was registered at.
        door: DoorId,
        /// The client's number there.
        client: u64,
    },
    /// A lane of this client is not answered. The client's other lanes should ask it for a sign of
    /// life.
    ClientMayBeGone {
        /// The door that the client is registered at.
        door: DoorId,
        /// The client's number there.
        client: u64,
    },
    /// The configuration has changed.
    Change(Box<CoreChanges>),
    /// A successor wants descriptors of the core's sockets.
    Lend(Sender<Vec<Lent>>),
    /// The successor has the descriptors and reads the sockets from now on. This core stops reading
    /// them and then answers by the channel.
    HandedOver(Sender<()>),
}

impl Mail for ServerMail {
    fn kind(&self) -> Kind {
        match self {
            ServerMail::Visitor { .. } => Kind::Visitor,
            ServerMail::Datagram { .. } => Kind::Datagram,
            ServerMail::Packet { .. } | ServerMail::TlsConnection { .. } => Kind::Packet,
            ServerMail::Evict { .. }
            | ServerMail::ClientMayBeGone { .. }
            | ServerMail::Change(_)
            | ServerMail::Lend(_)
            | ServerMail::HandedOver(_) => Kind::Control,
        }
    }
}
