//! The codes with which a lane ends.

use crate::code::code_enum;

code_enum! {
    /// The reason for which a lane ended: the application error code of CONNECTION_CLOSE (RFC 9000
    /// sections 19.19 and 20.2).
    pub enum LaneError {
        /// The peer has stopped; nothing went wrong.
        Shutdown = 0 => "shutdown",
        /// The server refused the registration; RegisterAck said why.
        Refused = 1 => "the registration was refused",
        /// The peer broke the wire format.
        ProtocolViolation = 2 => "protocol violation",
        /// Nothing was heard from the peer for the health timeout.
        HealthTimeout = 3 => "the health timeout is over",
        /// A newer lane has taken the place of this one.
        Replaced = 4 => "replaced by a newer lane",
        /// The drain timeout is over.
        Draining = 5 => "the drain timeout is over",
        /// The peer did not prove its identity.
        Unauthenticated = 6 => "not authenticated",
        /// A fault of the program that ends the lane.
        Internal = 7 => "internal error",
        _ => Unknown(u64), "unknown lane error {}",
    }
}

impl std::error::Error for LaneError {}
