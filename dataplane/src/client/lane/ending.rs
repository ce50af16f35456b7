//! The ends of a lane and their consequences, in one table.
//!
//! The end of a lane ([`LaneEnd`]) says something about its server, so that the other lanes ask the
//! server; about the session that it resumed; and about when to try again. An attempt ends together
//! with its lane, or before there is one, or because the supervisor goes on without the lane, which
//! then lives on with the flows that it has.

use std::fmt::{self, Display};
use std::time::Duration;

use qmux_proto::LaneError;
use qmux_proto::control::RefuseReason;

use super::leaving::Leaving;
use crate::quic::end::LaneEnd;

/// A lane that has served for this long ended for a reason of its own, so the back-off is reset.
const STEADY: Duration = Duration::from_secs(5);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The handshake has failed.
    Failed(String),
    /// This host has no route to the address.
    NoRoute(String),
    /// The server has refused the registration.
    Refused(RefuseReason, String),
    /// The server has another number of cores than the lane was aimed by; the lane is to be dialled
    /// again at once.
    Misaimed,
    /// The lane was registered and has ended.
    Ended(LaneEnd),
    /// The lane was registered, and its server drains. It lives on without a supervisor, with the
    /// flows that it has.
    ServerDrains,
    /// A newer instance has this client's id. The lane lives on as with [`Self::ServerDrains`].
    Superseded,
    /// The supervisor was retired. A lane that was registered lives on in the same way.
    Retired,
}

/// When the next attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// There is no further attempt.
    Never,
    /// At once, because the lane will be aimed better.
    AtOnce,
    /// After a delay that grows with each failure.
    Later,
    /// After the delay of a first failure, because the server is back, or will be soon.
    Anew,
    /// After the longest delay, because an earlier attempt can only do harm.
    MuchLater,
    /// Often, because the server drains and will have a successor. `refused` says whether it has
    /// refused a new lane for that.
    WithSuccessor { refused: bool },
    /// When the network has changed.
    WithRoute,
}

/// The consequences of the end of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Causes {
    /// Whether the other lanes to the server should ask if it is still there.
    pub(super) alarm: bool,
    /// Whether the server is back or will be: it was restarted, or is shutting down.
    pub(super) restart: bool,
    /// Whether the session that the lane resumed must not be offered again, if the lane ended
    /// before it was registered.
    pub(super) session_is_spent: bool,
    retry: Retry,
}

impl Causes {
    /// The consequences of each end of a lane: the table.
    #[rustfmt::skip] // Its columns stay columns.
    #[expect(clippy::match_same_arms, reason = "a row for each kind of end")]
    pub(super) fn of(end: &LaneEnd) -> Causes {
        use LaneEnd as End;
        let (yes, no) = (true, false);
        let (alarm, restart, session_is_spent, retry) = match end {
            End::StatelessReset                          => (yes, yes, no,  Retry::Anew),
            End::ClosedByPeer(LaneError::Shutdown, _)    => (yes, yes, yes, Retry::Anew),
            End::ClosedByPeer(LaneError::Internal, _)    => (yes, no,  yes, Retry::Later),
            End::ClosedByPeer(LaneError::Replaced, _)    => (no,  no,  yes, Retry::MuchLater),
            End::ClosedByPeer(..)                        => (no,  no,  yes, Retry::Later),
            End::TransportErrorByPeer(..)                => (yes, no,  yes, Retry::Later),
            End::TransportErrorByUs(..)                  => (no,  no,  yes, Retry::Later),
            End::BadCertificate(_)                       => (no,  no,  yes, Retry::Later),
            End::IdleTimeout                             => (yes, no,  no,  Retry::Later),
            End::ClosedByUs(LaneError::HealthTimeout)    => (yes, no,  no,  Retry::Later),
            End::ClosedByUs(_)                           => (no,  no,  no,  Retry::Later),
            End::NotRegistered | End::HandshakeTimeout   => (no,  no,  no,  Retry::Later),
            End::Unreachable(_) | End::Broken            => (no,  no,  no,  Retry::Later),
        };
        Causes { alarm, restart, session_is_spent, retry }
    }
}

impl AttemptEnd {
    /// The time at which the next attempt is made, if this one has lasted for `lasted`.
    pub(super) fn retry(&self, lasted: Duration) -> Retry {
        match self {
            AttemptEnd::Failed(_) => Retry::Later,
            AttemptEnd::NoRoute(_) => Retry::WithRoute,
            AttemptEnd::Refused(RefuseReason::Draining, _) => {
                Retry::WithSuccessor { refused: true }
            }
            AttemptEnd::Refused(..) => Retry::MuchLater,
            AttemptEnd::Misaimed => Retry::AtOnce,
            AttemptEnd::Ended(end) => match Causes::of(end).retry {
                Retry::Later if lasted >= STEADY => Retry::Anew,
                retry => retry,
            },
            AttemptEnd::ServerDrains => Retry::WithSuccessor { refused: false },
            AttemptEnd::Superseded => Retry::Anew,
            AttemptEnd::Retired => Retry::Never,
        }
    }

    /// Whether there was no lane at all.
    pub(super) fn is_in_vain(&self) -> bool {
        matches!(
            self,
            AttemptEnd::Failed(_) | AttemptEnd::NoRoute(_) | AttemptEnd::Refused(..)
        )
    }

    /// How a registered lane is left; `None` if there is none. `retired` is the way to leave it if
    /// the supervisor was retired.
    pub(super) fn leaving(&self, retired: Leaving) -> Option<Leaving> {
        match self {
            AttemptEnd::ServerDrains | AttemptEnd::Superseded => Some(Leaving::ServerDecides),
            AttemptEnd::Retired => Some(retired),
            AttemptEnd::Misaimed => Some(Leaving::Unwanted),
            AttemptEnd::Failed(_)
            | AttemptEnd::NoRoute(_)
            | AttemptEnd::Refused(..)
            | AttemptEnd::Ended(_) => None,
        }
    }
}

impl Display for AttemptEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptEnd::Failed(why) | AttemptEnd::NoRoute(why) => f.write_str(why),
            AttemptEnd::Refused(reason, text) if text.is_empty() => write!(f, "refused: {reason}"),
            AttemptEnd::Refused(reason, text) => write!(f, "refused: {reason}: {text}"),
            AttemptEnd::Misaimed => f.write_str("the server has another number of cores"),
            AttemptEnd::Ended(end) => end.fmt(f),
            AttemptEnd::ServerDrains => f.write_str("the server drains"),
            AttemptEnd::Superseded => f.write_str("a newer instance has this client_id"),
            AttemptEnd::Retired => f.write_str("the lane is not wanted any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use boring::x509::X509VerifyError;

    use super::*;
    use crate::quic::end::BadCertificate;

    /// One end of every kind.
    fn ends() -> Vec<LaneEnd> {
        let codes = [
            LaneError::Shutdown,
            LaneError::Internal,
            LaneError::Replaced,
            LaneError::Refused,
            LaneError::HealthTimeout,
        ];
        let by_peer = codes.map(|code| LaneEnd::ClosedByPeer(code, String::new()));
        let by_us = codes.map(LaneEnd::ClosedByUs);
        let expired = BadCertificate {
            code: 0x12d,
            why: X509VerifyError::CERT_HAS_EXPIRED,
            facts: None,
        };
        let others = [
            LaneEnd::BadCertificate(Box::new(expired)),
            LaneEnd::TransportErrorByPeer(1, String::new()),
            LaneEnd::TransportErrorByUs(1, String::new()),
            LaneEnd::StatelessReset,
            LaneEnd::IdleTimeout,
            LaneEnd::NotRegistered,
            LaneEnd::HandshakeTimeout,
            LaneEnd::Unreachable(std::io::ErrorKind::ConnectionRefused),
            LaneEnd::Broken,
        ];
        by_peer.into_iter().chain(by_us).chain(others).collect()
    }

    #[test]
    fn a_server_that_was_restarted_is_asked_by_all_lanes_and_dialled_soon() {
        let restarts: Vec<LaneEnd> = ends()
            .into_iter()
            .filter(|end| Causes::of(end).restart)
            .collect();
        assert_eq!(restarts.len(), 2, "{restarts:?}");
        for end in restarts {
            assert!(Causes::of(&end).alarm, "{end}");
            let retry = AttemptEnd::Ended(end).retry(Duration::ZERO);
            assert_eq!(retry, Retry::Anew);
        }
    }

    #[test]
    fn a_lane_that_had_served_is_dialled_soon_unless_another_instance_has_its_name() {
        for end in ends() {
            let replaced = matches!(end, LaneEnd::ClosedByPeer(LaneError::Replaced, _));
            let retry = AttemptEnd::Ended(end).retry(STEADY);
            let expected = if replaced {
                Retry::MuchLater
            } else {
                Retry::Anew
            };
            assert_eq!(retry, expected);
        }
    }

    #[test]
    fn what_this_client_has_closed_says_nothing_of_the_server_unless_it_was_silent() {
        for end in ends() {
            if let LaneEnd::ClosedByUs(code) = &end {
                let silent = *code == LaneError::HealthTimeout;
                assert_eq!(Causes::of(&end).alarm, silent, "{end}");
            }
        }
    }

    #[test]
    fn only_an_end_in_which_the_peer_or_tls_took_part_spends_the_session() {
        for end in ends() {
            let took_part = matches!(
                end,
                LaneEnd::ClosedByPeer(..)
                    | LaneEnd::TransportErrorByPeer(..)
                    | LaneEnd::TransportErrorByUs(..)
                    | LaneEnd::BadCertificate(_)
            );
            assert_eq!(Causes::of(&end).session_is_spent, took_part, "{end}");
        }
    }
}
