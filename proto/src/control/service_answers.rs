//! ServiceAnswers: a server's answer about each service that a client has offered.
//!
//! The message follows a RegisterAck that accepts the lane, for clients with the capability
//! [`Capabilities::NAMED_SERVICES`](super::Capabilities::NAMED_SERVICES), and is sent again
//! whenever an answer changes. Each message contains the answers about all services of the
//! Register, in its order.

use super::SERVICES_MAX;
use crate::code::code_enum;
use crate::error::DecodeError;
use crate::service::{self, SERVICE_NAME_BYTES_MAX};
use crate::varint;
use crate::wire;

/// The answers about all services that a client has offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAnswers {
    /// One for each service offered, at most [`SERVICES_MAX`].
    pub answers: Vec<ServiceAnswer>,
}

/// The answer about one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// The name, as it was offered.
    pub name: String,
    /// Whether the client serves it from now on.
    pub verdict: ServiceVerdict,
    /// The ports that visitors connect to; `None` unless the service is accepted.
    pub ports: Option<TrafficPorts>,
}

/// The traffic ports of a service, one or several in a row. A client with as many ports of its own
/// maps one to the other by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficPorts {
    /// The lowest port.
    pub first: u16,
    /// The number of ports, at least one; none of them exceeds 65,535.
    pub count: u16,
}

code_enum! {
    /// The verdict on a service that a client has offered.
    pub enum ServiceVerdict {
        /// The client serves it from now on.
        Accepted = 0 => "accepted",
        /// The server has no service of this name at the address that the client has dialled.
        Unknown = 1 => "the server has no service of this name",
        /// The client may not serve it.
        NotAllowed = 2 => "the server does not let this client serve it",
        /// The server's service and the client's have no protocol in common.
        OtherProtocol = 3 => "the server's service of this name speaks another protocol",
        _ => Other(u64), "refused with code {}",
    }
}

impl TrafficPorts {
    /// A range of ports; `None` if it is empty, or contains a number that is not a port.
    pub fn new(first: u16, count: u16) -> Option<Self> {
        let last = u32::from(first) + u32::from(count.checked_sub(1)?);
        (first > 0 && last <= u32::from(u16::MAX)).then_some(Self { first, count })
    }
}

impl ServiceAnswers {
    /// The longest encoding in bytes, type byte not included.
    pub(super) const ENCODED_BYTES_MAX: usize = varint::size(SERVICES_MAX as u64)
        + SERVICES_MAX * (2 + SERVICE_NAME_BYTES_MAX + varint::BYTES_MAX + 4);

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            self.answers.len() <= SERVICES_MAX,
            "more than {SERVICES_MAX} answers"
        );
        varint::put(out, self.answers.len() as u64);
        for answer in &self.answers {
            service::put(out, &answer.name);
            varint::put(out, answer.verdict.code());
            // The numbers are written even if there are no ports, so that answers of later versions
            // have the same shape.
            let ports = answer.ports.filter(|_| answer.is_accepted());
            let (first, count) = ports.map_or((0, 0), |ports| (ports.first, ports.count));
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
        }
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        let count = wire::varint(buf, "service answers")?;
        if count > SERVICES_MAX as u64 {
            return Err(DecodeError::TooLong {
                field: "service answers",
                length: count,
                max: SERVICES_MAX as u64,
            });
        }
        let answers = (0..count).map(|_| ServiceAnswer::decode(buf));
        Ok(Self {
            answers: answers.collect::<Result<_, _>>()?,
        })
    }
}

impl ServiceAnswer {
    fn is_accepted(&self) -> bool {
        self.verdict == ServiceVerdict::Accepted
    }

    fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        let name = service::get(buf)?.to_owned();
        let verdict = ServiceVerdict::from_code(wire::varint(buf, "service verdict")?);
        let first = u16::from_be_bytes(wire::array(buf, "first traffic port")?);
        let count = u16::from_be_bytes(wire::array(buf, "traffic ports")?);
        let ports = match verdict {
            // A server of a later version may leave the ports out.
            ServiceVerdict::Accepted if (first, count) != (0, 0) => {
                let ports = TrafficPorts::new(first, count);
                Some(ports.ok_or(DecodeError::OutOfRange {
                    field: "traffic ports",
                    value: u64::from(count),
                    min: 1,
                    max: u64::from(u16::MAX - first) + 1,
                })?)
            }
            _ => None,
        };
        Ok(Self {
            name,
            verdict,
            ports,
        })
    }
}
