//! The arrival of a TCP visitor: whether it is let in, and what its address is. A visitor who comes
//! through a trusted balancer says that first, by a PROXY header.

use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use super::header_wait::{HEADER_TIMEOUT, Place};
use super::visitor::Visitor;
use crate::core::task::spawn_or;
use crate::core::{OneFlow, memory};
use crate::server::bounds::{Permit, Refusal};
use crate::server::entrance::Entrance;
use crate::server::entrance::proxy_header::{self, Flaw, HEADER_BYTES_MAX, Progress};
use crate::server::pool::balance::Tried;
use crate::sys::limits;
use crate::sys::tcp::TcpSocket;

/// Room for a header as balancers send it, without a second allocation.
const USUAL_HEADER_BYTES: usize = 128;

/// A visitor who has just been accepted.
#[derive(Debug)]
struct Arrival {
    /// The address of its peer; a socket of both families sees IPv4 addresses mapped into IPv6.
    peer: SocketAddr,
    accepted: Instant,
    /// The time at which it was accepted, in microseconds since the Unix epoch.
    accepted_at_us: u64,
}

impl Arrival {
    fn now(peer: SocketAddr) -> Arrival {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Arrival {
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            accepted: Instant::now(),
            accepted_at_us: since_epoch.map_or(0, |since| {
                u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
            }),
        }
    }
}

/// The bytes of its header that a visitor has sent so far, with those that came behind it.
#[derive(Debug)]
struct Beginning {
    bytes: Vec<u8>,
    /// Whether the visitor has sent a FIN behind them.
    ended: bool,
}

/// The visitor's address by the header that [`Beginning`] holds.
#[derive(Debug, Clone, Copy)]
struct HeaderRead {
    header_bytes: usize,
    visitor: Option<SocketAddr>,
}

impl Beginning {
    /// Takes what the visitor has sent, by `read`. `None` if more of the header is to come.
    fn take(
        &mut self,
        read: impl Fn(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Option<HeaderRead>, Refusal> {
        let mut piece = [0; HEADER_BYTES_MAX];
        loop {
            // This is never zero: bytes that fill it were judged, as a header or as none.
            let room = HEADER_BYTES_MAX - self.bytes.len();
            match read(&mut piece[..room]) {
                Ok(0) => self.ended = true,
                Ok(read) => self.bytes.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Refusal::ProxyHeaderMissing),
            }
            match proxy_header::read(&self.bytes) {
                Ok(Progress::Header { bytes, visitor }) => {
                    return Ok(Some(HeaderRead {
                        header_bytes: bytes,
                        visitor,
                    }));
                }
                Ok(Progress::More) if self.ended => return Err(Refusal::ProxyHeaderMissing),
                Ok(Progress::More) => {}
                Err(Flaw::Bad) => return Err(Refusal::ProxyHeaderBad),
                Err(Flaw::TooLong) => return Err(Refusal::ProxyHeaderTooLong),
            }
        }
    }
}

impl Entrance {
    /// Handles a visitor that was accepted.
    pub(crate) fn visitor(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        self.counters().visitors_accepted.increment();
        self.service_counters().visitors.increment();
        let arrival = Arrival::now(peer);
        let peer = arrival.peer;
        let gate = &self.service().gate;
        if gate.expects_proxy_header(peer.ip()) {
            return self.await_header(stream, arrival);
        }
        let permit = gate.admit_visitor(self.core(), peer.ip(), arrival.accepted);
        match permit.and_then(|permit| means_for(&stream).map(|()| permit)) {
            Ok(permit) => self.admitted(stream, &arrival, peer, Vec::new(), false, permit),
            Err(why) => self.refuse(stream, peer, why),
        }
    }

    /// Handles a visitor who must begin with a PROXY header. It counts among the service's visitors
    /// from now on; all other limits are for the address in the header.
    fn await_header(self: &Rc<Self>, stream: TcpStream, arrival: Arrival) {
        let peer = arrival.peer;
        let permit = self.service().gate.admit_unknown(self.core());
        let permit = match permit.and_then(|permit| means_for(&stream).map(|()| permit)) {
            Ok(permit) => permit,
            Err(why) => return self.refuse(stream, peer, why),
        };
        let mut beginning = Beginning {
            bytes: Vec::with_capacity(USUAL_HEADER_BYTES),
            ended: false,
        };
        // Most visitors have sent it by now.
        match beginning.take(|into| (&stream).read(into)) {
            Ok(Some(told)) => self.introduced(stream, &arrival, told, beginning, permit),
            Ok(None) => {
                let (entrance, cleans_up) = (Rc::clone(self), Rc::clone(self));
                let under_way = OneFlow::new(&self.context().cluster);
                let task = async move {
                    let wait = entrance.wait_for_header(stream, arrival, beginning, permit);
                    wait.await;
                    drop(under_way);
                };
                spawn_or(task, move || cleans_up.door().flow_panicked());
            }
            Err(why) => self.refuse(stream, peer, why),
        }
    }

    async fn wait_for_header(
        self: Rc<Self>,
        stream: TcpStream,
        arrival: Arrival,
        mut beginning: Beginning,
        permit: Option<Permit>,
    ) {
        let peer = arrival.peer;
        let socket = match TcpSocket::adopt(stream) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%peer, %error, "visitor lost before its PROXY header");
                return self.count_refused(peer, Refusal::ProxyHeaderMissing);
            }
        };
        let place = Place::on_this_core();
        let comes = async {
            loop {
                // The read that follows finds an error again.
                let _ready = socket.readable().await;
                match beginning.take(|into| socket.try_read(into)) {
                    Ok(Some(told)) => return Ok(told),
                    Ok(None) => {}
                    Err(why) => return Err(why),
                }
            }
        };
        let left = HEADER_TIMEOUT.saturating_sub(arrival.accepted.elapsed());
        let result = match place.must_go.cuts_short(timeout(left, comes)).await {
            Some(result) => result,
            None => Err(Refusal::ProxyHeaderCrowd),
        };
        drop(place);
        // The runtime keeps its own descriptor for a moment; this one is reset when it is dropped.
        match (result, socket.try_clone()) {
            (Ok(told), Ok(stream)) if limits::is_for_flows(&stream) => {
                self.introduced(stream, &arrival, told, beginning, permit);
            }
            (Ok(_), _) => self.count_refused(peer, Refusal::Descriptors),
            (Err(why), _) => self.count_refused(peer, why),
        }
    }

    /// Handles a visitor whose PROXY header has come.
    fn introduced(
        self: &Rc<Self>,
        stream: TcpStream,
        arrival: &Arrival,
        told: HeaderRead,
        beginning: Beginning,
        permit: Option<Permit>,
    ) {
        let visitor = told.visitor.unwrap_or(arrival.peer);
        tracing::debug!(%visitor, balancer = %arrival.peer, "visitor introduced by a PROXY header");
        let gate = &self.service().gate;
        match gate.admit_known(self.core(), visitor.ip(), permit, Instant::now()) {
            Ok(permit) => {
                let Beginning { mut bytes, ended } = beginning;
                bytes.drain(..told.header_bytes);
                self.count_first_bytes(bytes.len());
                self.admitted(stream, arrival, visitor, bytes, ended, permit);
            }
            Err(why) => self.refuse(stream, visitor, why),
        }
    }

    /// Counts the bytes behind the header, which are the visitor's, like those that are read later.
    fn count_first_bytes(&self, bytes: usize) {
        self.counters().tcp_bytes_in.add(bytes as u64);
        self.service_counters().tcp_bytes_in.add(bytes as u64);
    }

    /// Lets a visitor in who has sent `sent`, and a FIN behind it if `ended`.
    fn admitted(
        self: &Rc<Self>,
        stream: TcpStream,
        arrival: &Arrival,
        addr: SocketAddr,
        sent: Vec<u8>,
        ended: bool,
        permit: Option<Permit>,
    ) {
        let visitor = Visitor {
            addr,
            traffic: self.where_to(&stream),
            accepted: arrival.accepted,
            accepted_at_us: arrival.accepted_at_us,
            chosen_by: self.core(),
            tried: Tried::default(),
            sent,
            ended,
            under_way: None,
            _permit: permit,
        };
        self.send_to_a_client(stream, Box::new(visitor));
    }

    /// The address that a visitor has connected to. The socket is asked only if it is open to
    /// several addresses.
    fn where_to(&self, stream: &TcpStream) -> SocketAddr {
        let bound = self.traffic_addr();
        if !bound.ip().is_unspecified() {
            return bound;
        }
        stream.local_addr().map_or(bound, |local| {
            SocketAddr::new(local.ip().to_canonical(), local.port())
        })
    }
}

/// Whether there are memory and descriptors for one more visitor.
fn means_for(stream: &TcpStream) -> Result<(), Refusal> {
    if memory::refuses_newcomers() {
        return Err(Refusal::Memory);
    }
    if !limits::is_for_flows(stream) {
        return Err(Refusal::Descriptors);
    }
    Ok(())
}

/// Waits for the header until its time is over.
async fn timeout(
    left: Duration,
    comes: impl Future<Output = Result<HeaderRead, Refusal>>,
) -> Result<HeaderRead, Refusal> {
    let result = crate::core::time::timeout(left, comes).await;
    result.unwrap_or(Err(Refusal::ProxyHeaderLate))
}
