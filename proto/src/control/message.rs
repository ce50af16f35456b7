//! One message of the control stream.

use super::{
    AuthChallenge, AuthProof, Finished, FlowClosed, GoAway, HandOvers, Heartbeat, NoMoreFlows,
    PathChallenge, PathResponse, Register, RegisterAck, ServiceAnswers, ServiceHealth, WayFails,
};
use crate::error::DecodeError;
use crate::varint;

/// The longest message in bytes, with the type byte but without the length. A Register with every
/// service offered takes 8.5 KiB, the answers to it 9; the rest is for the fields of later
/// versions.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!(Register::ENCODED_BYTES_MAX < MESSAGE_BYTES_MAX / 2 + 1024);
const _: () = assert!(ServiceAnswers::ENCODED_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(RegisterAck::ENCODED_BYTES_MAX < MESSAGE_BYTES_MAX);

const REGISTER: u8 = 1;
const REGISTER_ACK: u8 = 2;
const HEARTBEAT: u8 = 3;
const FLOW_CLOSED: u8 = 4;
const GO_AWAY: u8 = 5;
const AUTH_CHALLENGE: u8 = 6;
const AUTH_PROOF: u8 = 7;
const SERVICE_HEALTH: u8 = 8;
const FINISHED: u8 = 9;
const NO_MORE_FLOWS: u8 = 11;
const SERVICE_ANSWERS: u8 = 12;
const HAND_OVERS: u8 = 13;
const WAY_FAILS: u8 = 14;
const PATH_CHALLENGE: u8 = 20;
const PATH_RESPONSE: u8 = 21;

/// A message of the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Client: its name and what it offers. The first message of a lane.
    Register(Register),
    /// Server: whether it accepts the lane.
    RegisterAck(RegisterAck),
    /// Both: a sign of life.
    Heartbeat(Heartbeat),
    /// Both: a UDP flow is over.
    FlowClosed(FlowClosed),
    /// Both: no new flows on this lane, which will end.
    GoAway(GoAway),
    /// Server: asks for proof that the client knows the token.
    AuthChallenge(AuthChallenge),
    /// Client: the proof.
    AuthProof(AuthProof),
    /// Client: whether a service can be reached.
    ServiceHealth(ServiceHealth),
    /// Both: a TCP flow's stream is complete at this size.
    Finished(Finished),
    /// Server: the answer to GoAway, with the number of flows that were opened.
    NoMoreFlows(NoMoreFlows),
    /// Server: the answer about each service that was offered.
    ServiceAnswers(ServiceAnswers),
    /// Server: what it had to hand over to this lane for want of another one.
    HandOvers(HandOvers),
    /// Server: most of what it sends is lost on the lane's path.
    WayFails(WayFails),
    /// Server: asks for proof that the client receives at its new address.
    PathChallenge(PathChallenge),
    /// Client: the proof that was asked for.
    PathResponse(PathResponse),
}

impl Message {
    /// Appends the message with its length to `out`.
    ///
    /// # Panics
    ///
    /// If a field breaks its limit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.type_byte());
        match self {
            Self::Register(body) => body.encode(out),
            Self::RegisterAck(body) => body.encode(out),
            Self::Heartbeat(body) => body.encode(out),
            Self::FlowClosed(body) => body.encode(out),
            Self::GoAway(body) => body.encode(out),
            Self::AuthChallenge(body) => body.encode(out),
            Self::AuthProof(body) => body.encode(out),
            Self::ServiceHealth(body) => body.encode(out),
            Self::Finished(body) => body.encode(out),
            Self::NoMoreFlows(body) => body.encode(out),
            Self::ServiceAnswers(body) => body.encode(out),
            Self::HandOvers(body) => body.encode(out),
            Self::WayFails(body) => body.encode(out),
            Self::PathChallenge(body) => body.encode(out),
            Self::PathResponse(body) => body.encode(out),
        }
        let length = out.len() - start;
        assert!(
            length <= MESSAGE_BYTES_MAX,
            "a message of {length} bytes is too long"
        );
        varint::put(out, length as u64);
        out[start..].rotate_right(varint::size(length as u64));
    }

    /// Reads the type byte and the fields; `None` if the type is not known.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        let Some((&type_byte, mut body)) = bytes.split_first() else {
            return Err(DecodeError::Truncated {
                field: "message type",
            });
        };
        let buf = &mut body;
        Ok(Some(match type_byte {
            REGISTER => Self::Register(Register::decode(buf)?),
            REGISTER_ACK => Self::RegisterAck(RegisterAck::decode(buf)?),
            HEARTBEAT => Self::Heartbeat(Heartbeat::decode(buf)?),
            FLOW_CLOSED => Self::FlowClosed(FlowClosed::decode(buf)?),
            GO_AWAY => Self::GoAway(GoAway::decode(buf)?),
            AUTH_CHALLENGE => Self::AuthChallenge(AuthChallenge::decode(buf)?),
            AUTH_PROOF => Self::AuthProof(AuthProof::decode(buf)?),
            SERVICE_HEALTH => Self::ServiceHealth(ServiceHealth::decode(buf)?),
            FINISHED => Self::Finished(Finished::decode(buf)?),
            NO_MORE_FLOWS => Self::NoMoreFlows(NoMoreFlows::decode(buf)?),
            SERVICE_ANSWERS => Self::ServiceAnswers(ServiceAnswers::decode(buf)?),
            HAND_OVERS => Self::HandOvers(HandOvers::decode(buf)?),
            WAY_FAILS => Self::WayFails(WayFails::decode(buf)?),
            PATH_CHALLENGE => Self::PathChallenge(PathChallenge::decode(buf)?),
            PATH_RESPONSE => Self::PathResponse(PathResponse::decode(buf)?),
            _ => return Ok(None),
        }))
    }

    fn type_byte(&self) -> u8 {
        match self {
            Self::Register(_) => REGISTER,
            Self::RegisterAck(_) => REGISTER_ACK,
            Self::Heartbeat(_) => HEARTBEAT,
            Self::FlowClosed(_) => FLOW_CLOSED,
            Self::GoAway(_) => GO_AWAY,
            Self::AuthChallenge(_) => AUTH_CHALLENGE,
            Self::AuthProof(_) => AUTH_PROOF,
            Self::ServiceHealth(_) => SERVICE_HEALTH,
            Self::Finished(_) => FINISHED,
            Self::NoMoreFlows(_) => NO_MORE_FLOWS,
            Self::ServiceAnswers(_) => SERVICE_ANSWERS,
            Self::HandOvers(_) => HAND_OVERS,
            Self::WayFails(_) => WAY_FAILS,
            Self::PathChallenge(_) => PATH_CHALLENGE,
            Self::PathResponse(_) => PATH_RESPONSE,
        }
    }
}
