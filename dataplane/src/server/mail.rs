//! What the server role of one core hands to that of another.

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

/// The core of a server.
pub(crate) type ServerContext = RoleContext<ServerMail>;

/// One hand-over.
#[derive(Debug)]
pub(crate) enum ServerMail {
    /// A visitor whose client has no lane on the core that accepted it.
    Visitor {
        /// Where it came in.
        entrance: EntranceId,
        /// The accepted socket.
        stream: TcpStream,
        /// Who it is, and what is known of it.
        visitor: Box<Visitor>,
        /// The client chosen for it.
        ticket: FlowTicket,
    },
    /// A datagram of a visitor whose flow lives on the receiving core.
    Datagram {
        /// Where it came in.
        entrance: EntranceId,
        /// The datagram.
        packet: ForwardedUdp,
    },
    /// A QUIC packet for a lane of the receiving core.
    Packet {
        /// Whose socket received it.
        door: DoorId,
        /// Which of the door's sockets.
        address: usize,
        /// The packet.
        data: Vec<u8>,
        /// Who sent it.
        from: SocketAddr,
        /// The local address that it was sent to.
        to_ip: Option<IpAddr>,
        /// So many that the successor has passed on found no place before it.
        lost_before: u64,
    },
    /// A TLS connection that carries a lane of the receiving core.
    TlsConnection {
        /// Whose socket accepted it.
        door: DoorId,
        /// Which of the door's addresses.
        address: usize,
        /// The connection.
        connection: Box<TlsConnection>,
    },
    /// A client was replaced by a newer instance: its lanes take no new flow, and are closed if
    /// they do not answer.
    Evict {
        /// The door that it was registered at.
        door: DoorId,
        /// Its number there.
        client: u64,
    },
    /// A lane of this client is not answered: have its other lanes ask.
    ClientMayBeGone {
        /// The door that it is registered at.
        door: DoorId,
        /// Its number there.
        client: u64,
    },
    /// The configuration has changed.
    Change(Box<CoreChanges>),
    /// A successor wants descriptors of the core's sockets.
    Lend(Sender<Vec<Lent>>),
    /// The successor has them: it reads them from now on, and this core does no more. Told when that
    /// is so.
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
