//! A TLS connection of an endpoint: packets are sent at once, or wait for room in the socket.
//!
//! What waits is bounded: while the socket is full ([`TlsWay::is_full`]) the lane is not asked for
//! packets, so that no more than one batch waits here, and little in the kernel
//! (`CARRIER_UNSENT_BYTES_MAX` of `sys/tcp.rs`). So acknowledgements and datagrams that come later
//! do not queue behind megabytes of bulk.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use super::connection::TlsConnection;
use super::framing::{self, HEADER_BYTES, PACKET_BYTES_MAX};
use super::pipe::{Clear, TlsPipe};
use crate::quic::roaming::{TlsId, Way};
use crate::sys::tcp::TcpSocket;

/// Bytes of one read of the socket.
const READ_BYTES: usize = 64 << 10;

/// Clear bytes of one turn: those of one read, after the beginning of a packet that came earlier.
const CLEAR_BYTES: usize = READ_BYTES + HEADER_BYTES + PACKET_BYTES_MAX;

/// Buffers of this core, shared by all connections, because each is used only within one call.
struct Scratch {
    cipher: Vec<u8>,
    clear: Vec<u8>,
}

thread_local! {
    static RECEIVE: RefCell<Scratch> = RefCell::new(Scratch {
        cipher: vec![0; READ_BYTES],
        clear: vec![0; CLEAR_BYTES],
    });
    /// Packets with their lengths, before they are encrypted.
    static SEND: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The result of a read.
#[derive(Debug)]
pub(in crate::quic) enum Taken {
    /// Packets have come, and there may be more.
    More,
    /// Everything has been read.
    All,
    /// The connection is over.
    Over(String),
}

/// What became of packets that were to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::quic) enum Sent {
    /// The kernel has taken them all.
    All,
    /// Some wait for room: see [`TlsWay::write_rest`].
    Waits,
    /// The connection is over.
    Lost,
}

/// One TLS connection.
#[derive(Debug)]
pub(in crate::quic) struct TlsWay {
    /// The path by which lanes refer to the connection.
    pub(in crate::quic) way: Way,
    socket: TcpSocket,
    pipe: RefCell<TlsPipe>,
    /// The beginning of a packet that is not whole yet.
    rest: RefCell<Vec<u8>>,
    full: Cell<bool>,
    over: Cell<bool>,
    /// Whether the peer, or somebody between, has ended the connection.
    hung_up: Cell<bool>,
    /// The lane that is to be told when there is room.
    pub(in crate::quic) waits: Cell<Option<u64>>,
    /// The lane whose packets came last.
    pub(in crate::quic) lane: Cell<Option<u64>>,
    /// On a server, the deadline for a registered lane to use the connection; `None` once one does.
    pub(in crate::quic) claim_until: Cell<Option<Instant>>,
    /// Whether its lane is known to be, or to become, one of this core.
    pub(in crate::quic) settled: Cell<bool>,
}

impl TlsWay {
    /// Takes a connection over, on this core.
    pub(in crate::quic) fn adopt(connection: TlsConnection, id: TlsId) -> io::Result<Rc<TlsWay>> {
        let way = Way {
            peer: connection.peer,
            local: Some(connection.local),
            tls: Some(id),
        };
        Ok(Rc::new(TlsWay {
            way,
            socket: TcpSocket::adopt_carrier(connection.stream)?,
            pipe: RefCell::new(connection.pipe),
            rest: RefCell::new(connection.rest),
            full: Cell::new(false),
            over: Cell::new(false),
            hung_up: Cell::new(false),
            waits: Cell::new(None),
            lane: Cell::new(None),
            claim_until: Cell::new(connection.claim_until),
            settled: Cell::new(connection.handed_over),
        }))
    }

    /// Takes the connection apart for another core, where the bytes that have come are looked at
    /// again.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(in crate::quic) fn leave(self: Rc<TlsWay>) -> io::Result<Option<TlsConnection>> {
        let stream = self.socket.try_clone()?;
        let Some(this) = Rc::into_inner(self) else {
            return Ok(None);
        };
        Ok(Some(TlsConnection {
            stream,
            pipe: this.pipe.into_inner(),
            rest: this.rest.into_inner(),
            peer: this.way.peer,
            local: this.way.local.unwrap_or(this.way.peer.ip()),
            claim_until: this.claim_until.get(),
            handed_over: true,
        }))
    }

    /// Waits until there is something to read. This is cancel-safe.
    pub(in crate::quic) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads once, and calls `each` with every packet that is whole now. `elsewhere` says of the
    /// first packet whether it belongs to another core; then that packet and everything after it
    /// are kept.
    pub(in crate::quic) fn receive(
        &self,
        elsewhere: impl FnOnce(&[u8]) -> bool,
        each: impl FnMut(&mut [u8]),
    ) -> Taken {
        RECEIVE.with_borrow_mut(|scratch| self.receive_with(scratch, elsewhere, each))
    }

    fn receive_with(
        &self,
        scratch: &mut Scratch,
        elsewhere: impl FnOnce(&[u8]) -> bool,
        each: impl FnMut(&mut [u8]),
    ) -> Taken {
        let Scratch { cipher, clear } = scratch;
        let (filled, mut taken) = match self.decrypt(clear) {
            // Everything that came earlier has been read.
            (filled, Taken::All) => match self.socket.try_read(cipher) {
                Ok(0) => {
                    self.note_hung_up();
                    (filled, Taken::Over("the peer closed the connection".into()))
                }
                Ok(count) => {
                    self.pipe.borrow_mut().came(&cipher[..count]);
                    let (filled, taken) = self.decrypt_after(clear, filled);
                    match taken {
                        Taken::All if count < cipher.len() => (filled, Taken::All),
                        Taken::All => (filled, Taken::More),
                        taken => (filled, taken),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (filled, Taken::All),
                Err(error) => {
                    self.note_error(&error);
                    (filled, Taken::Over(error.to_string()))
                }
            },
            other => other,
        };
        let clear = &mut clear[..filled];
        if !self.settled.get()
            && let Some(first) = framing::first(clear)
        {
            if elsewhere(first) {
                *self.rest.borrow_mut() = clear.to_vec();
                return taken;
            }
            self.settled.set(true);
        }
        match framing::split(clear, each) {
            Ok(count) => {
                let mut rest = self.rest.borrow_mut();
                rest.clear();
                rest.extend_from_slice(&clear[count..]);
            }
            Err(error) => taken = Taken::Over(error.to_string()),
        }
        taken
    }

    /// Copies the beginning of a packet, and all clear bytes that there are, to the front of
    /// `clear`.
    fn decrypt(&self, clear: &mut [u8]) -> (usize, Taken) {
        let filled = {
            let rest = self.rest.borrow();
            // After a hand-over this may be a whole batch.
            let count = rest.len().min(clear.len());
            clear[..count].copy_from_slice(&rest[..count]);
            count
        };
        self.decrypt_after(clear, filled)
    }

    fn decrypt_after(&self, clear: &mut [u8], mut filled: usize) -> (usize, Taken) {
        let mut pipe = self.pipe.borrow_mut();
        loop {
            if filled == clear.len() {
                return (filled, Taken::More);
            }
            match pipe.read(&mut clear[filled..]) {
                Ok(Clear::Bytes(count)) => filled += count,
                Ok(Clear::Nothing) => return (filled, Taken::All),
                Ok(Clear::End) => {
                    self.note_hung_up();
                    return (filled, Taken::Over("the peer ended the TLS session".into()));
                }
                Err(error) => return (filled, Taken::Over(error.to_string())),
            }
        }
    }

    /// Sends packets of `segment` bytes each; the last one may be shorter.
    pub(in crate::quic) fn send(&self, packets: &[u8], segment: usize) -> Sent {
        if self.over.get() {
            return Sent::Lost;
        }
        let encrypted = SEND.with_borrow_mut(|framed| {
            framed.clear();
            for packet in packets.chunks(segment.max(1)) {
                framing::append(packet, framed);
            }
            self.pipe.borrow_mut().write(framed)
        });
        if encrypted.is_err() {
            self.close();
            return Sent::Lost;
        }
        self.push()
    }

    /// Gives the kernel what it takes.
    fn push(&self) -> Sent {
        let mut pipe = self.pipe.borrow_mut();
        let outgoing = pipe.outgoing();
        let mut sent = 0;
        while sent < outgoing.len() {
            match self.socket.try_write(&outgoing[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.note_error(&error);
                    outgoing.clear();
                    drop(pipe);
                    self.close();
                    return Sent::Lost;
                }
            }
        }
        outgoing.drain(..sent);
        if outgoing.is_empty() {
            self.full.set(false);
            return Sent::All;
        }
        Sent::Waits
    }

    /// Whether packets wait for room in the socket.
    pub(in crate::quic) fn has_waiting(&self) -> bool {
        self.full.get()
    }

    /// Number of encrypted bytes that wait.
    #[cfg(test)]
    pub(in crate::quic) fn waiting_bytes(&self) -> usize {
        self.pipe.borrow_mut().outgoing().len()
    }

    /// Whether packets wait for room in the socket; if so, `lane` is told when there is some.
    pub(in crate::quic) fn is_full(&self, lane: u64) -> bool {
        let full = self.full.get();
        if full {
            self.waits.set(Some(lane));
        }
        full
    }

    /// Notes that packets wait from now on. Returns true if nobody has called
    /// [`TlsWay::write_rest`] for them yet.
    pub(in crate::quic) fn begins_to_wait(&self) -> bool {
        !self.full.replace(true)
    }

    /// Sends what waits, however long that takes, or until the connection is over.
    pub(in crate::quic) async fn write_rest(&self) {
        while self.full.get() && !self.over.get() {
            if self.socket.writable().await.is_err() {
                self.close();
                break;
            }
            if self.push() == Sent::Lost {
                break;
            }
        }
        self.full.set(false);
    }

    /// Whether the peer has ended the connection, or its process has died. Returns false if this
    /// side has ended it, or if nothing was acknowledged for too long.
    pub(in crate::quic) fn was_hung_up(&self) -> bool {
        self.hung_up.get()
    }

    fn note_hung_up(&self) {
        if !self.over.get() {
            self.hung_up.set(true);
        }
    }

    fn note_error(&self, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        if matches!(error.kind(), BrokenPipe | ConnectionReset) {
            self.note_hung_up();
        }
    }

    /// Ends the connection. What the kernel has taken is still sent.
    pub(in crate::quic) fn close(&self) {
        if !self.over.replace(true) {
            self.socket.shut();
        }
    }
}
