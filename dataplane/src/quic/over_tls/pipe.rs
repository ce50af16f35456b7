//! TLS over memory: encrypted and clear bytes go in and out.
//!
//! There is no I/O in here. The owner of a pipe writes what is in [`TlsPipe::outgoing`] to a
//! socket, and feeds the pipe with what it reads there, many records at a time.

use std::io::{self, Read, Write};

use boring::error::ErrorStack;
use boring::ssl::{Error, ErrorCode, Ssl, SslRef, SslStream};

/// The encrypted bytes of both directions.
#[derive(Debug, Default)]
struct Wire {
    /// Bytes that have come; those before `taken` are used up.
    incoming: Vec<u8>,
    taken: usize,
    /// Bytes to be sent.
    outgoing: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let waits = &self.incoming[self.taken..];
        if waits.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = waits.len().min(into.len());
        into[..count].copy_from_slice(&waits[..count]);
        self.taken += count;
        if self.taken == self.incoming.len() {
            self.incoming.clear();
            self.taken = 0;
        }
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The side of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// The result of reading clear bytes.
#[derive(Debug)]
pub(super) enum Clear {
    /// This many bytes were read.
    Bytes(usize),
    /// There are none until more comes from the network.
    Nothing,
    /// The peer sends no more.
    End,
}

/// One TLS connection without its socket.
#[derive(Debug)]
pub(super) struct TlsPipe {
    stream: SslStream<Wire>,
    side: Side,
}

impl TlsPipe {
    pub(super) fn new(ssl: Ssl, side: Side) -> Result<TlsPipe, ErrorStack> {
        let stream = SslStream::new(ssl, Wire::default())?;
        Ok(TlsPipe { stream, side })
    }

    /// Continues the handshake. Returns true once it is complete.
    ///
    /// # Errors
    /// If it has failed; an alert for the peer may be among the bytes to be sent.
    pub(super) fn handshake(&mut self) -> Result<bool, Error> {
        let result = match self.side {
            Side::Client => self.stream.connect(),
            Side::Server => self.stream.accept(),
        };
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.would_block() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn side(&self) -> Side {
        self.side
    }

    pub(super) fn ssl(&self) -> &SslRef {
        self.stream.ssl()
    }

    /// Takes bytes that came from the network.
    pub(super) fn came(&mut self, bytes: &[u8]) {
        let wire = self.stream.get_mut();
        if wire.taken > 0 {
            wire.incoming.drain(..wire.taken);
            wire.taken = 0;
        }
        wire.incoming.extend_from_slice(bytes);
    }

    /// Reads clear bytes.
    ///
    /// # Errors
    /// If the bytes from the network are not TLS of this connection.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<Clear, Error> {
        match self.stream.ssl_read(into) {
            Ok(0) => Ok(Clear::End),
            Ok(count) => Ok(Clear::Bytes(count)),
            Err(error) if error.would_block() => Ok(Clear::Nothing),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(Clear::End),
            Err(error) => Err(error),
        }
    }

    /// Encrypts bytes, and adds them to those to be sent.
    ///
    /// # Errors
    /// If the connection is over.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let count = self.stream.ssl_write(bytes)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// The bytes to be sent to the network; whoever sends them takes them out.
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.stream.get_mut().outgoing
    }
}
