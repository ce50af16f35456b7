//! ServiceHealth: whether a client reaches its service.

use crate::error::DecodeError;
use crate::service;
use crate::wire;

/// A client reports whether it reaches a service that it offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The name of the service, as it was offered.
    pub service: String,
    /// Whether the client reaches it.
    pub healthy: bool,
}

impl ServiceHealth {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        service::put(out, &self.service);
        out.push(u8::from(self.healthy));
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            service: service::get(buf)?.to_owned(),
            healthy: match wire::byte(buf, "service health")? {
                0 => false,
                1 => true,
                value => {
                    return Err(DecodeError::OutOfRange {
                        field: "service health",
                        value: u64::from(value),
                        min: 0,
                        max: 1,
                    });
                }
            },
        })
    }
}
