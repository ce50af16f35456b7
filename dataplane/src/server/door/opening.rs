//! Opening a door on one core: an endpoint for each of its addresses, and the TLS port beside it.

use std::net::{TcpListener, UdpSocket as StdUdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use super::Door;
use super::owner::Owner;
use crate::quic::endpoint::{Endpoint, EndpointSetup};
use crate::quic::reset::ResetKey;
use crate::quic::{settings, tls};
use crate::server::shared::ServerSettings;
use crate::sys::tcp::Acceptor;
use crate::sys::udp::{Purpose, UdpSocket};

impl Door {
    /// Opens all addresses. Those that could be opened are added to the door even if one fails.
    ///
    /// # Errors
    /// With a text for the log if an address cannot be opened.
    pub(super) fn open_addresses(
        self: &Rc<Self>,
        sockets: Vec<StdUdpSocket>,
        tls_sockets: Vec<Option<TcpListener>>,
        settings: &ServerSettings,
    ) -> Result<(), String> {
        let (mut endpoints, mut problem) = (Vec::new(), None);
        for (address, socket) in sockets.into_iter().enumerate() {
            match self.open_address(address, socket, settings) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(why) => problem = Some(why),
            }
        }
        let _first = self.endpoints.set(endpoints);
        if let Some(why) = problem {
            return Err(why);
        }
        for (endpoint, socket) in self.endpoints().iter().zip(tls_sockets) {
            if let Some(socket) = socket {
                self.open_tls(endpoint, socket, settings)?;
            }
        }
        Ok(())
    }

    fn open_address(
        self: &Rc<Self>,
        address: usize,
        socket: StdUdpSocket,
        settings: &ServerSettings,
    ) -> Result<Rc<Endpoint>, String> {
        let context = &self.context;
        let (server, quic) = (settings.server(), &settings.config.quic);
        let config = self.transport(settings)?;
        let socket = UdpSocket::adopt(socket, Purpose::Quic).map_err(|error| error.to_string())?;
        let port = socket.local_addr().port();
        let reset_key = ResetKey::from_key(&server.tls.server_key, port)?;
        let setup = EndpointSetup {
            socket,
            core: context.index,
            group: context.cluster.cores(),
            config,
            packet_bytes_max: settings::packet_bytes_max(quic),
            accepts: true,
            handshake_timeout: quic.handshake_idle_timeout,
            reset_key: Some(reset_key),
            counters: Arc::clone(&context.counters),
        };
        let owner = Owner {
            door: Rc::clone(self),
            address,
        };
        Ok(Endpoint::start(setup, Some(Rc::new(owner))))
    }

    /// Lets clients in over TLS as well.
    fn open_tls(
        &self,
        endpoint: &Rc<Endpoint>,
        socket: TcpListener,
        settings: &ServerSettings,
    ) -> Result<(), String> {
        let acceptor = Acceptor::adopt(socket).map_err(|error| error.to_string())?;
        let context = tls::carrier_server(&settings.credentials);
        endpoint.show_over_tls(context.map_err(|error| error.to_string())?);
        endpoint.accept_tls(acceptor);
        Ok(())
    }
}
