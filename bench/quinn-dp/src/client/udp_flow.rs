//! A UDP flow on the client: a connected socket to the service.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use qmux_udp::BatchSocket;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

use crate::clock::LastSeen;
use crate::endpoint;
use crate::transport::Settings;

/// What both directions of a flow know.
#[derive(Debug)]
pub(super) struct UdpFlow {
    pub(super) id: u64,
    pub(super) socket: BatchSocket,
    pub(super) service: SocketAddr,
    pub(super) seen: LastSeen,
    ended: AtomicBool,
    /// Wakes the task that reads the socket when the flow ends.
    ending: Notify,
}

impl UdpFlow {
    /// Connects a socket to the service. Call it on the runtime.
    pub(super) fn open(id: u64, service: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let domain = Domain::for_address(service);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        endpoint::set_buffers(&socket, settings);
        socket.connect(&service.into())?;
        Ok(Self {
            id,
            socket: BatchSocket::new(socket.into())?,
            service,
            seen: LastSeen::now(),
            ended: AtomicBool::new(false),
            ending: Notify::new(),
        })
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.ending.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until the flow has ended.
    pub(super) async fn ended(&self) {
        self.ending.notified().await;
    }
}
