//! One UDP flow on the client: its destination, and its socket.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};

use qmux_config::ProxyProtocolUdp;

use super::super::services::ServedFlow;
use super::wanted::Wanted;
use crate::core::event::Event;
use crate::sys::bind::{any_towards, raise_udp_buffers};
use crate::sys::limits;
use crate::sys::udp::{Purpose, UdpSocket};

/// The socket and destination of a flow.
pub(super) struct ServiceSocket {
    /// One of the addresses of the service's host.
    pub(super) host: SocketAddr,
    /// The address `host` with the port for the visitor.
    pub(super) to: SocketAddr,
    pub(super) socket: UdpSocket,
}

/// One flow.
pub(super) struct Flow {
    pub(super) id: u64,
    pub(super) wanted: Wanted,
    /// Counts the flow among those of its service.
    pub(super) _served: ServedFlow,
    pub(super) service: ServiceSocket,
    /// Addresses of the service's host at which nobody listened.
    pub(super) refused_at: Vec<SocketAddr>,
    /// The version of the host's addresses when `service` was chosen, or last found to be good.
    pub(super) version: Cell<u64>,
    pub(super) packet_id: Cell<u64>,
    /// The flow's key among the core's flows.
    pub(super) life: Cell<usize>,
    /// The first datagram, while another address may have to be tried with it.
    pub(super) first: RefCell<Option<Box<[u8]>>>,
    /// Whether the service at this address has been sent a PROXY header about the visitor.
    pub(super) introduced: Cell<bool>,
    pub(super) closed: Cell<bool>,
    pub(super) receive_over: Event,
    /// Whether it has been logged that the service cannot be reached.
    pub(super) complained: Cell<bool>,
}

impl Flow {
    pub(super) fn new(id: u64, wanted: Wanted, service: ServiceSocket, version: u64) -> Flow {
        Flow {
            id,
            _served: ServedFlow::new(&wanted.service),
            wanted,
            service,
            refused_at: Vec::new(),
            version: Cell::new(version),
            packet_id: Cell::new(0),
            life: Cell::new(usize::MAX),
            first: RefCell::new(None),
            introduced: Cell::new(false),
            closed: Cell::new(false),
            receive_over: Event::default(),
            complained: Cell::new(false),
        }
    }

    /// The bytes that go before the next datagram to the service.
    pub(super) fn prefix(&self) -> &[u8] {
        let every = self.wanted.service.local.proxy_protocol_udp == ProxyProtocolUdp::Every;
        if every || !self.introduced.get() {
            &self.wanted.header
        } else {
            &[]
        }
    }

    pub(super) fn close(&self) {
        self.closed.set(true);
        self.receive_over.set();
    }
}

/// A socket on a free port that talks to `service` alone.
pub(super) fn connect(service: SocketAddr) -> io::Result<UdpSocket> {
    let socket = StdUdpSocket::bind(any_towards(service))?;
    limits::for_flows(&socket)?;
    socket.connect(service)?;
    // The buffers are as large as the kernel allows; what it grants was logged for the sockets of
    // the core. A service may answer in bursts, and the default holds about 90 datagrams of 1,000
    // bytes.
    let _granted = raise_udp_buffers(&socket);
    UdpSocket::adopt(socket, Purpose::Traffic)
}
