//! The codes with which a flow ends.

use crate::code::code_enum;

code_enum! {
    /// The reason for which a flow ended: the application error code of RESET_STREAM and
    /// STOP_SENDING (RFC 9000 sections 19.4, 19.5 and 20.2) for a TCP flow, of FlowClosed for a UDP
    /// flow.
    pub enum FlowError {
        /// The flow ended well.
        NoError = 0 => "no error",
        /// The service refused the connection.
        DialRefused = 1 => "the service refused the connection",
        /// The service did not answer in time.
        DialTimeout = 2 => "the service did not answer in time",
        /// The service could not be reached for another reason.
        DialFailed = 3 => "the service could not be reached",
        /// The visitor reset its connection.
        VisitorReset = 4 => "the visitor reset the connection",
        /// The service reset its connection.
        ServiceReset = 5 => "the service reset the connection",
        /// One side is shutting down: a TCP flow was not begun, or a UDP flow ends.
        Draining = 6 => "one side is draining",
        /// A fault of the program that ends the flow.
        Internal = 7 => "internal error",
        /// A UDP flow carried nothing for the session timeout.
        Expired = 8 => "the session timeout is over",
        /// The peer named a flow that this side does not know.
        UnknownFlow = 9 => "the flow is not known",
        /// There is no client that could take the flow.
        NoClient = 10 => "no client is available",
        /// A limit on flows is reached.
        LimitReached = 11 => "a limit is reached",
        /// The peer broke the wire format inside this flow.
        ProtocolViolation = 12 => "protocol violation",
        /// Bytes waited for the stall timeout, and the visitor or the service took none of them.
        Stalled = 13 => "no byte was taken for the stall timeout",
        _ => Unknown(u64), "unknown flow error {}",
    }
}

impl FlowError {
    /// Whether a client that resets a TCP flow with this code says that its service has seen
    /// nothing of it: no connection was made, and not a byte was delivered. Such a flow may begin
    /// anew on another client. A client sends these codes for nothing else.
    pub const fn is_untouched(self) -> bool {
        matches!(
            self,
            Self::DialRefused
                | Self::DialTimeout
                | Self::DialFailed
                | Self::Draining
                | Self::LimitReached
        )
    }
}

impl std::error::Error for FlowError {}
