//! One UDP flow on the client: where it goes, and the socket by which it gets there.

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

/// How a flow gets to its service.
pub(super) struct Way {
    /// One of the addresses of the service's host.
    pub(super) host: SocketAddr,
    /// The same with the port that the visitor gets.
    pub(super) to: SocketAddr,
    pub(super) socket: UdpSocket,
}

/// One flow.
pub(super) struct Flow {
    pub(super) id: u64,
    pub(super) wanted: Wanted,
    /// It counts among the service's flows.
    pub(super) _served: ServedFlow,
    pub(super) way: Way,
    /// Addresses of the service's host at which nobody listened.
    pub(super) refused_at: Vec<SocketAddr>,
    /// Of the host's addresses, when `way` was chosen or found to be good still.
    pub(super) version: Cell<u64>,
    pub(super) packet_id: Cell<u64>,
    /// Its key among the core's flows.
    pub(super) life: Cell<usize>,
    /// The first datagram, while another address may have to be tried with it.
    pub(super) first: RefCell<Option<Box<[u8]>>>,
    /// The service has been told of the visitor at this address.
    pub(super) introduced: Cell<bool>,
    pub(super) closed: Cell<bool>,
    pub(super) receive_over: Event,
    /// It has been logged that the service cannot be reached.
    pub(super) complained: Cell<bool>,
}

impl Flow {
    pub(super) fn new(id: u64, wanted: Wanted, way: Way, version: u64) -> Flow {
        Flow {
            id,
            _served: ServedFlow::new(&wanted.service),
            wanted,
            way,
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

    /// What is to stand in front of the datagram that goes to the service next.
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
    // As large as the kernel allows; what it grants was told for the sockets of the core. A service
    // may answer in bursts, and the default holds about 90 datagrams of 1,000 bytes.
    let _granted = raise_udp_buffers(&socket);
    UdpSocket::adopt(socket, Purpose::Traffic)
}
