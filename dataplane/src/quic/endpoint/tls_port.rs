//! A server's TCP port for TLS connections that carry lanes: accepting them, and what strangers may
//! cost.
//!
//! A connection counts as a stranger's from accept(2) until a registered lane rides it. Meanwhile
//! it holds a place, like a lane whose peer has not registered, under the same rules
//! ([`crate::quic::admission`]): places in all and for one network, connections per second, and the
//! oldest makes room when it has been a stranger's for long. So a flood of slow handshakes, or of
//! connections that send nothing, costs a bounded number of descriptors and bytes, and honest
//! clients get in beside it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boring::ssl::SslContext;

use super::Endpoint;
use crate::core::event::{Event, yield_now};
use crate::core::panics::contain;
use crate::quic::admission::Verdict;
use crate::quic::over_tls::{self, TlsConnection};
use crate::quic::roaming::TlsId;
use crate::sys::limits;
use crate::sys::tcp::{self, Acceptor, TcpSocket};

/// Connections that are accepted before the core's other tasks get a turn.
const ACCEPTS_PER_TURN: usize = 32;

/// Pause after accept(2) has failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The shortest time between two log lines about refused connections; a counter tells how many
/// there were.
const REFUSED_LOG_PAUSE: Duration = Duration::from_secs(60);

/// How long a stranger's connection may take to carry a registered lane, beyond two handshakes: as
/// long as a lane may take to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// The fraction of the descriptors that strangers' connections may have, in the whole process. Each
/// takes a descriptor that visitors need as well.
const DESCRIPTORS_PART: usize = 8;

/// Number of endpoints of this process that take TLS connections: those of each door and address,
/// on each core.
static PORTS: AtomicUsize = AtomicUsize::new(0);

/// Counts an endpoint among them.
struct Port;

impl Port {
    fn open() -> Port {
        PORTS.fetch_add(1, Ordering::Relaxed);
        Port
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        PORTS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The places of one of `ports`, given the descriptors of the process.
fn places_of_one(descriptors: usize, ports: usize) -> usize {
    descriptors / DESCRIPTORS_PART / ports.max(1)
}

impl Endpoint {
    /// Sets the context of TLS connections that begin from now on.
    pub(crate) fn show_over_tls(&self, context: SslContext) {
        *self.tls_context.borrow_mut() = Some(context);
    }

    /// Takes TLS connections at `acceptor` until the endpoint closes.
    pub(crate) fn accept_tls(self: &Rc<Self>, acceptor: Acceptor) {
        let this = Rc::clone(self);
        let port = Port::open();
        crate::core::task::spawn_vital(async move {
            this.accept_tls_until_closed(acceptor).await;
            drop(port);
        });
    }

    async fn accept_tls_until_closed(self: Rc<Self>, acceptor: Acceptor) {
        loop {
            match self.tls_stop.cuts_short(acceptor.readable()).await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.counters.internal_errors.increment();
                    tracing::error!(%error, "the socket for TLS connections is broken; this core takes no more");
                    break;
                }
            }
            for _ in 0..ACCEPTS_PER_TURN {
                match acceptor.try_accept() {
                    Ok((stream, peer)) => {
                        let _counted = contain(|| self.accepted_tls(stream, peer));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        self.counters.accepts_failed.increment();
                        tracing::debug!(%error, "accept of a TLS connection");
                        crate::core::time::sleep(ACCEPT_PAUSE).await;
                        break;
                    }
                }
            }
            yield_now().await;
        }
        acceptor.close();
    }

    fn accepted_tls(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        self.counters.tls_accepted.increment();
        let Some(context) = self.tls_context.borrow().clone() else {
            tcp::refuse(stream);
            return;
        };
        let now = Instant::now();
        // The last descriptors are not for strangers.
        let place = limits::is_for_flows(&stream).then(|| self.take_tls_place(peer, now));
        let Some(id) = place.flatten() else {
            tcp::refuse(stream);
            return;
        };
        let cancelled = Rc::<Event>::default();
        self.tls_handshakes
            .borrow_mut()
            .insert(id, Rc::clone(&cancelled));
        let (this, ends) = (Rc::clone(self), Rc::clone(self));
        crate::core::task::spawn_or(
            async move {
                let shaken = this.shake_hands_over_tls(stream, &context);
                let done = cancelled.cuts_short(shaken).await;
                this.tls_handshakes.borrow_mut().remove(&id);
                let adopted = match done {
                    Some(Ok(mut connection)) => {
                        let patience = this.handshake_timeout * 2 + REGISTER_TIMEOUT;
                        connection.claim_until = Some(now + patience);
                        this.adopt_tls_as(id, connection)
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(io::Error::other("somebody else needed its place")),
                };
                if let Err(error) = adopted {
                    this.counters.tls_handshakes_failed.increment();
                    this.give_tls_place_back(id);
                    tracing::debug!(core = this.core, %peer, %error, "no TLS connection");
                }
            },
            move || {
                ends.tls_handshakes.borrow_mut().remove(&id);
                ends.give_tls_place_back(id);
            },
        );
    }

    async fn shake_hands_over_tls(
        &self,
        stream: TcpStream,
        context: &SslContext,
    ) -> io::Result<TlsConnection> {
        let socket = TcpSocket::adopt_carrier(stream)?;
        let done = over_tls::accept(socket, context, self.handshake_timeout).await;
        done.map_err(io::Error::other)
    }

    /// Takes a connection over that another core has accepted. Returns false if there is no place
    /// for it.
    pub(crate) fn inject_tls(self: &Rc<Self>, connection: TlsConnection) -> bool {
        if self.closing.get() {
            return false;
        }
        let Some(id) = self.take_tls_place(connection.peer, Instant::now()) else {
            return false;
        };
        let adopted = self.adopt_tls_as(id, connection);
        if adopted.is_err() {
            self.give_tls_place_back(id);
        }
        adopted.is_ok()
    }

    /// Takes a place for a stranger's connection, if there is one.
    fn take_tls_place(&self, peer: SocketAddr, now: Instant) -> Option<TlsId> {
        let admission = self.tls_admission.as_ref()?;
        let ports = PORTS.load(Ordering::Relaxed);
        let places = places_of_one(limits::flow_descriptors_max(), ports);
        admission.borrow_mut().set_places(places);
        let verdict = admission.borrow_mut().judge(peer.ip(), true, now);
        let displaces = match verdict {
            Verdict::Begin { displaces } => displaces,
            Verdict::Retry | Verdict::Refuse(_) => {
                self.tls_refused(peer, now);
                return None;
            }
        };
        if let Some(number) = displaces {
            self.displace_tls(TlsId::new(number));
        }
        let id = self.next_tls_id();
        admission.borrow_mut().take(id.number(), peer.ip(), now);
        Some(id)
    }

    fn tls_refused(&self, peer: SocketAddr, now: Instant) {
        self.counters.tls_refused.increment();
        let due = |at: Instant| now.saturating_duration_since(at) >= REFUSED_LOG_PAUSE;
        if self.crowded_logged_at.get().is_none_or(due) {
            self.crowded_logged_at.set(Some(now));
            tracing::warn!(
                core = self.core,
                %peer,
                "more TLS connections of strangers than one core takes; some are refused (counter \
                 tls_refused)"
            );
        }
    }

    fn displace_tls(&self, id: TlsId) {
        self.give_tls_place_back(id);
        if let Some(handshake) = self.tls_handshakes.borrow().get(&id) {
            handshake.set();
        }
        self.close_tls(id);
    }

    /// Gives the place of a connection back that a registered lane rides, that another core has, or
    /// that is over.
    pub(super) fn give_tls_place_back(&self, id: TlsId) {
        if let Some(admission) = &self.tls_admission {
            admission.borrow_mut().give_back(id.number());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_of_all_ports_together_get_their_part_of_the_descriptors_and_no_more() {
        let descriptors = 65_536;
        for ports in [1, 2, 20, 160] {
            let all = places_of_one(descriptors, ports) * ports;
            assert!(all <= descriptors / DESCRIPTORS_PART, "{ports}: {all}");
        }
        let before = PORTS.load(Ordering::Relaxed);
        let ports = [(); 300].map(|()| Port::open());
        assert!(PORTS.load(Ordering::Relaxed) >= 300);
        drop(ports);
        // Other tests open and close some meanwhile.
        assert!(PORTS.load(Ordering::Relaxed) < before + 300);
    }
}
