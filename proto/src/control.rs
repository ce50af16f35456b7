//! The control stream: stream 0, opened by the client, on which a lane is registered, kept healthy
//! and ended.
//!
//! A message is a varint with the bytes that follow, one byte with the type, and the fields. What a
//! later version appends to a message, and whole messages of a type that is not known, are skipped
//! by that length, so that versions can differ.
//!
//! Each message has its own file with its fields; [`Decoder`] cuts the stream into messages.

mod auth;
mod capabilities;
mod decoder;
mod finished;
mod flow_closed;
mod go_away;
mod hand_overs;
mod heartbeat;
mod message;
mod no_more_flows;
mod path;
mod register;
mod register_ack;
mod service_answers;
mod service_health;
mod way_fails;

pub use auth::{AUTH_NONCE_BYTES, AUTH_PROOF_BYTES_MAX, AuthChallenge, AuthProof};
pub use capabilities::Capabilities;
pub use decoder::{BUFFER_BYTES_MAX, Decoder, FEED_BYTES_MAX};
pub use finished::Finished;
pub use flow_closed::FlowClosed;
pub use go_away::{GoAway, GoAwayReason};
pub use hand_overs::HandOvers;
pub use heartbeat::Heartbeat;
pub use message::{MESSAGE_BYTES_MAX, Message};
pub use no_more_flows::NoMoreFlows;
pub use path::{PathChallenge, PathResponse};
pub use register::{
    CLIENT_ID_BYTES_MAX, INSTANCE_ID_BYTES, Protocols, Register, SERVICES_MAX, ServiceOffer,
    is_valid_client_id,
};
pub use register_ack::{REFUSAL_TEXT_BYTES_MAX, RefuseReason, RegisterAck, RegisterOutcome};
pub use service_answers::{ServiceAnswer, ServiceAnswers, ServiceVerdict, TrafficPorts};
pub use service_health::ServiceHealth;
pub use way_fails::WayFails;
