//! Register: the first message of a lane, from the client.

use super::Capabilities;
use crate::error::DecodeError;
use crate::service::{self, SERVICE_NAME_BYTES_MAX};
use crate::varint;
use crate::wire;

/// The longest client id in bytes of UTF-8: a UUID takes 36, and a pod's full DNS name fits (RFC
/// 1035 section 2.3.4).
pub const CLIENT_ID_BYTES_MAX: usize = 253;

/// The bytes of an instance id: a UUID (RFC 9562).
pub const INSTANCE_ID_BYTES: usize = 16;

/// The most services that one client offers. This bounds what a server keeps per client.
pub const SERVICES_MAX: usize = 64;

/// A client asks to register this lane under its name. The server judges whether the numbers make
/// sense together (versions, `lane_index` below `lane_count`), and answers with a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The protocol version of the client, see [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub protocol_version: u64,
    /// The name of the client: 1 to [`CLIENT_ID_BYTES_MAX`] bytes without control characters.
    pub client_id: String,
    /// Random bytes of this run of the client: lanes with equal client id and instance id belong
    /// together.
    pub instance_id: [u8; INSTANCE_ID_BYTES],
    /// The index of this lane, from 0.
    pub lane_index: u64,
    /// How many lanes the client intends to open.
    pub lane_count: u64,
    /// What the client can do.
    pub capabilities: Capabilities,
    /// The services behind the client, at most [`SERVICES_MAX`].
    pub services: Vec<ServiceOffer>,
}

/// A service that a client offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOffer {
    /// The name, 0 to [`SERVICE_NAME_BYTES_MAX`] bytes without control characters.
    pub name: String,
    /// The protocols that the service speaks.
    pub protocols: Protocols,
}

impl ServiceOffer {
    /// A service that speaks TCP and UDP.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            protocols: Protocols::BOTH,
        }
    }
}

/// The protocols of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// The service takes TCP flows.
    pub tcp: bool,
    /// The service takes UDP flows.
    pub udp: bool,
}

impl Protocols {
    /// TCP and UDP, which is assumed for a client that does not say.
    pub const BOTH: Self = Self {
        tcp: true,
        udp: true,
    };

    const TCP_BIT: u8 = 1 << 0;
    const UDP_BIT: u8 = 1 << 1;

    fn bits(self) -> u8 {
        let (tcp, udp) = (u8::from(self.tcp), u8::from(self.udp));
        (tcp * Self::TCP_BIT) | (udp * Self::UDP_BIT)
    }

    /// Reads the bits; those that this version does not know have no effect.
    fn from_bits(bits: u8) -> Self {
        Self {
            tcp: bits & Self::TCP_BIT != 0,
            udp: bits & Self::UDP_BIT != 0,
        }
    }
}

/// Whether a Register may contain this id: 1 to [`CLIENT_ID_BYTES_MAX`] bytes and no control
/// characters, because ids are logged.
pub fn is_valid_client_id(id: &str) -> bool {
    (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

impl Register {
    /// The longest encoding in bytes, type byte not included.
    pub(super) const ENCODED_BYTES_MAX: usize = varint::BYTES_MAX
        + 2
        + CLIENT_ID_BYTES_MAX
        + INSTANCE_ID_BYTES
        + 3 * varint::BYTES_MAX
        + varint::size(SERVICES_MAX as u64)
        + SERVICES_MAX * (2 + SERVICE_NAME_BYTES_MAX + 1);

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            is_valid_client_id(&self.client_id),
            "client id {:?} is not valid",
            self.client_id
        );
        assert!(
            self.services.len() <= SERVICES_MAX,
            "more than {SERVICES_MAX} services"
        );
        varint::put(out, self.protocol_version);
        wire::put_bytes(out, self.client_id.as_bytes());
        out.extend_from_slice(&self.instance_id);
        varint::put(out, self.lane_index);
        varint::put(out, self.lane_count);
        varint::put(out, self.capabilities.bits());
        varint::put(out, self.services.len() as u64);
        for offer in &self.services {
            service::put(out, &offer.name);
        }
        // These are appended, so that older servers skip them. They are written even if they say
        // what such servers assume, because what a later version appends must not be taken for
        // them.
        out.extend(self.services.iter().map(|it| it.protocols.bits()));
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        let protocol_version = wire::varint(buf, "protocol version")?;
        let client_id = wire::text(buf, "client id", CLIENT_ID_BYTES_MAX)?;
        if client_id.is_empty() {
            return Err(DecodeError::OutOfRange {
                field: "client id length",
                value: 0,
                min: 1,
                max: CLIENT_ID_BYTES_MAX as u64,
            });
        }
        Ok(Self {
            protocol_version,
            client_id: client_id.to_owned(),
            instance_id: wire::array(buf, "instance id")?,
            lane_index: wire::varint(buf, "lane index")?,
            lane_count: wire::varint(buf, "lane count")?,
            capabilities: Capabilities::from_varint(wire::varint(buf, "capabilities")?),
            services: decode_services(buf)?,
        })
    }
}

fn decode_services(buf: &mut &[u8]) -> Result<Vec<ServiceOffer>, DecodeError> {
    let count = wire::varint(buf, "services")?;
    if count > SERVICES_MAX as u64 {
        return Err(DecodeError::TooLong {
            field: "services",
            length: count,
            max: SERVICES_MAX as u64,
        });
    }
    let offers = (0..count).map(|_| Ok(ServiceOffer::new(service::get(buf)?)));
    let mut services = offers.collect::<Result<Vec<_>, _>>()?;
    if !buf.is_empty() {
        for offer in &mut services {
            offer.protocols = Protocols::from_bits(wire::byte(buf, "protocols of a service")?);
        }
    }
    Ok(services)
}
