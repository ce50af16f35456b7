//! Cutting the control stream into messages, however the stream's bytes arrive.

use super::message::{MESSAGE_BYTES_MAX, Message};
use crate::error::DecodeError;
use crate::varint;

/// The most bytes to give to one [`Decoder::feed`]: one large receive buffer.
pub const FEED_BYTES_MAX: usize = 64 * 1024;

/// The most bytes that a [`Decoder`] holds: one feed and the unfinished message before it.
pub const BUFFER_BYTES_MAX: usize = FEED_BYTES_MAX + varint::BYTES_MAX + MESSAGE_BYTES_MAX;

/// The most bytes that stay allocated while nothing waits: enough for every frequent message,
/// little enough for very many idle lanes.
const IDLE_BYTES_MAX: usize = 1024;

/// Takes the bytes of the control stream in pieces of any size, and returns its messages.
///
/// After each [`feed`](Self::feed) call [`next`](Self::next) until it returns `None`. Then at most
/// one unfinished message is left, and the next feed of up to [`FEED_BYTES_MAX`] bytes always fits.
/// Looking at an unfinished message costs only the reading of its length, and each byte is moved at
/// most twice, so a peer gains nothing by sending single bytes.
///
/// The first error is final, because the rest of the stream cannot be read.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes before `start` have been used.
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
    failure: Option<DecodeError>,
}

impl Decoder {
    /// A decoder at the start of a stream. It allocates only once it is fed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] if more than [`BUFFER_BYTES_MAX`] bytes would wait, which cannot
    /// happen to a caller who drains the decoder as described above; and any earlier error again.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let length = self.buffered() + bytes.len();
        if length > BUFFER_BYTES_MAX {
            return self.fail(DecodeError::TooLong {
                field: "control stream buffer",
                length: length as u64,
                max: BUFFER_BYTES_MAX as u64,
            });
        }
        self.compact();
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next complete message; `None` while more bytes are needed. Messages of types that are
    /// not known are skipped and counted.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`]; a length above [`MESSAGE_BYTES_MAX`] is one before the message is
    /// there.
    #[expect(
        clippy::should_implement_trait,
        reason = "an Iterator would not come back from None once more bytes are fed"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, DecodeError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.advance().or_else(|failure| self.fail(failure))
    }

    /// Number of messages that were skipped because their type is not known.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Number of bytes that wait for the rest of their message.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Number of bytes that the buffer occupies, used or not.
    pub fn allocated_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    fn advance(&mut self) -> Result<Option<Message>, DecodeError> {
        loop {
            let mut rest = &self.buffer[self.start..];
            if rest.is_empty() {
                self.reset();
                return Ok(None);
            }
            let Ok(length) = varint::get(&mut rest) else {
                return Ok(None);
            };
            let length = check_length(length)?;
            let Some(bytes) = rest.get(..length) else {
                return Ok(None);
            };
            let message = Message::decode(bytes)?;
            self.start = self.buffer.len() - rest.len() + length;
            match message {
                Some(message) => return Ok(Some(message)),
                None => self.skipped += 1,
            }
        }
    }

    /// Makes room for new bytes. Bytes are moved only when at least as many have been used, which
    /// keeps the cost per byte constant.
    fn compact(&mut self) {
        if self.start >= self.buffer.len() - self.start {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }

    /// Drops bytes that have been used, and gives back memory that a rare large message needed.
    fn reset(&mut self) {
        self.start = 0;
        self.buffer.clear();
        if self.buffer.capacity() > IDLE_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    fn fail<T>(&mut self, failure: DecodeError) -> Result<T, DecodeError> {
        self.failure = Some(failure);
        self.buffer = Vec::new();
        self.start = 0;
        Err(failure)
    }
}

fn check_length(length: u64) -> Result<usize, DecodeError> {
    match usize::try_from(length) {
        Ok(0) => Err(DecodeError::OutOfRange {
            field: "message length",
            value: 0,
            min: 1,
            max: MESSAGE_BYTES_MAX as u64,
        }),
        Ok(length) if length <= MESSAGE_BYTES_MAX => Ok(length),
        _ => Err(DecodeError::TooLong {
            field: "control message",
            length,
            max: MESSAGE_BYTES_MAX as u64,
        }),
    }
}
