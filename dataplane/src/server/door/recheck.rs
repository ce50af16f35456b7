//! Whether the clients that are there may still serve: their certificates expire and are revoked,
//! and the configuration changes.
//!
//! Each door looks at its lanes again from time to time, and at once when the settings have changed.
//! A lane whose client would not be let in now gets no new flow, is told so, and ends when what it
//! carries has had some time.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};

use qmux_config::{Admission, ServerAuth};
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use super::Door;
use super::auth;
use super::lane::{ServerLane, address};
use crate::core::event::yield_now;
use crate::core::time;
use crate::server::shared::ServerSettings;
use crate::sys;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(10);

/// How long the flows of a client that may not serve any more may go on, at most.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Certificates that are checked before the other tasks of the core get a turn: some milliseconds.
const CHECKS_PER_TURN: usize = 16;

/// What is looked at.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// The settings are others than at the last look.
    anew: bool,
    /// So is what certificates are held against.
    certificates: bool,
    /// Seconds since 1970.
    now_s: i64,
}

/// Runs for as long as the door is there.
pub(super) async fn run(door: Weak<Door>) {
    let (mut generation, mut trusted) = (None, None);
    loop {
        let Some(here) = door.upgrade() else { return };
        let settings = here.settings();
        // Once for each configuration, and certificates against what they are held against only
        // when that is another one: it costs some hundred microseconds.
        let look = Look {
            anew: generation.replace(settings.generation) != Some(settings.generation),
            certificates: {
                let now = settings.credentials.trusted;
                trusted.replace(now) != Some(now)
            },
            now_s: seconds_since_1970(),
        };
        let lanes: Vec<_> = here.registered.borrow().values().cloned().collect();
        for (count, lane) in lanes.into_iter().enumerate() {
            if !lane.withdrawn.get()
                && let Some(why) = refusal(&lane, &settings, look)
            {
                withdraw(&here, &lane, why);
            }
            if look.anew && count % CHECKS_PER_TURN == CHECKS_PER_TURN - 1 {
                yield_now().await;
            }
        }
        drop(settings);
        let _sooner = here.recheck.cuts_short(time::sleep(PAUSE)).await;
    }
}

/// Why the lane's client would not be let in now.
fn refusal(lane: &ServerLane, settings: &ServerSettings, look: Look) -> Option<String> {
    let admitted = lane.admitted.get()?;
    if admitted
        .expiry_s
        .is_some_and(|expiry_s| expiry_s <= look.now_s)
    {
        return Some("its certificate has expired".into());
    }
    if !look.anew {
        return None;
    }
    let claim = &admitted.claim;
    let now = settings
        .matcher
        .again(&claim.admission, claim.token.as_ref());
    let with_certificates = matches!(settings.server().auth, ServerAuth::Mtls { .. });
    if with_certificates != admitted.by_certificate {
        return Some("clients prove in another way now who they are".into());
    }
    if now == Admission::Refused {
        return Some(match claim.admission {
            Admission::Entry(_) => "its entry in [[server.clients]] is gone, or has another \
                                    certificate, fingerprint or token"
                .into(),
            _ => "the token, or who may serve, has changed".into(),
        });
    }
    if with_certificates {
        let names = auth::names_of(lane);
        let by_certificate = settings.matcher.by_certificate(&names);
        if by_certificate.identity() != claim.admission.identity() {
            return Some("its certificate belongs to another entry of [[server.clients]]".into());
        }
        if !look.certificates {
            return None;
        }
        let store = settings.store.as_ref()?;
        let checked = lane
            .lane
            .with_tls(|ssl| sys::tls::check_client_against(ssl, store));
        if let Err(why) = checked {
            return Some(format!("its certificate is not good any more: {why}"));
        }
    }
    None
}

/// The lane gets no new flow, is told so, and ends after a while.
fn withdraw(door: &Rc<Door>, lane: &Rc<ServerLane>, why: String) {
    lane.withdrawn.set(true);
    door.counters().lanes_withdrawn.increment();
    if let Some(suppressed) = door.context().handshake_log.pass(Instant::now()) {
        tracing::warn!(
            client = lane.client_id(),
            peer = address(&lane.lane),
            why,
            suppressed,
            "client may not serve here any more; it gets no new flow and is disconnected"
        );
    }
    let timeout = door.settings().server().drain_timeout.min(DRAIN_MAX);
    door.lane_takes_no_more(lane);
    lane.lane.send_control(&Message::GoAway(GoAway {
        reason: GoAwayReason::Withdrawn,
        drain_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    }));
    let lane = Rc::downgrade(lane);
    crate::core::task::spawn(async move {
        time::sleep(timeout).await;
        if let Some(lane) = lane.upgrade() {
            lane.lane.close(LaneError::Unauthenticated, &why);
        }
    });
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
