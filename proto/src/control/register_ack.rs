//! RegisterAck: the server's answer to Register.

use super::INSTANCE_ID_BYTES;
use crate::code::code_enum;
use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The longest text of a refusal in bytes: a few sentences for the client's log.
pub const REFUSAL_TEXT_BYTES_MAX: usize = 1024;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// A server's answer to Register, with what the client must know to aim its lanes at the server's
/// cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterAck {
    /// Whether the lane is accepted.
    pub outcome: RegisterOutcome,
    /// Random bytes of this run of the server.
    pub server_instance_id: [u8; INSTANCE_ID_BYTES],
    /// How many cores the server has.
    pub server_cores: u64,
    /// The index of the server core that owns this lane.
    pub lane_core: u64,
}

/// Whether a server accepts a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// The lane is registered.
    Accepted,
    /// The lane is refused and will be closed with
    /// [`LaneError::Refused`](crate::error::LaneError::Refused).
    Refused {
        /// The reason as a code.
        reason: RefuseReason,
        /// The reason in words. On the wire it is cut to [`REFUSAL_TEXT_BYTES_MAX`] bytes and its
        /// control characters become spaces.
        text: String,
    },
}

code_enum! {
    /// The reason for which a server refuses a lane.
    pub enum RefuseReason {
        /// The server does not speak the client's protocol version.
        UnsupportedVersion = 1 => "the protocol version is not supported",
        /// The client did not prove its identity.
        Unauthenticated = 2 => "the client is not authenticated",
        /// Another instance is registered under the same client id.
        DuplicateClient = 3 => "the client id is in use by another instance",
        /// The server is shutting down.
        Draining = 4 => "the server is draining",
        /// A limit on clients or lanes is reached.
        LimitReached = 5 => "a limit is reached",
        /// The Register message is not valid.
        BadRequest = 6 => "the request is not valid",
        /// The client is authenticated, but is none of those that may serve here.
        NotAdmitted = 7 => "the client is not among those that may serve here",
        _ => Other(u64), "refused with code {}",
    }
}

impl RegisterAck {
    /// The longest encoding in bytes, type byte not included.
    pub(super) const ENCODED_BYTES_MAX: usize = 1
        + varint::BYTES_MAX
        + 2
        + REFUSAL_TEXT_BYTES_MAX
        + INSTANCE_ID_BYTES
        + 2 * varint::BYTES_MAX;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match &self.outcome {
            RegisterOutcome::Accepted => out.push(ACCEPTED),
            RegisterOutcome::Refused { reason, text } => {
                out.push(REFUSED);
                varint::put(out, reason.code());
                wire::put_bytes(out, printable(text).as_bytes());
            }
        }
        out.extend_from_slice(&self.server_instance_id);
        varint::put(out, self.server_cores);
        varint::put(out, self.lane_core);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            outcome: decode_outcome(buf)?,
            server_instance_id: wire::array(buf, "server instance id")?,
            server_cores: wire::varint(buf, "server cores")?,
            lane_core: wire::varint(buf, "lane core")?,
        })
    }
}

fn decode_outcome(buf: &mut &[u8]) -> Result<RegisterOutcome, DecodeError> {
    match wire::byte(buf, "register outcome")? {
        ACCEPTED => Ok(RegisterOutcome::Accepted),
        REFUSED => Ok(RegisterOutcome::Refused {
            reason: RefuseReason::from_code(wire::varint(buf, "refuse reason")?),
            text: wire::text(buf, "refusal text", REFUSAL_TEXT_BYTES_MAX)?.to_owned(),
        }),
        outcome => Err(DecodeError::OutOfRange {
            field: "register outcome",
            value: u64::from(outcome),
            min: u64::from(ACCEPTED),
            max: u64::from(REFUSED),
        }),
    }
}

/// The text in the form that a decoder accepts. It may quote an error of the system, so it is made
/// to fit rather than asserted.
fn printable(text: &str) -> String {
    let mut end = text.len().min(REFUSAL_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
