//! Whether registered clients may still serve: their certificates expire or are revoked, and the
//! configuration changes.
//!
//! Each door checks its lanes from time to time, and at once when the settings have changed. A lane
//! whose client would not be let in now gets no new flow, is told so, and is closed when its flows
//! have had some time to finish.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};

use qmux_config::{Admission, ServerAuth};
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use super::Door;
use super::auth::{self, Admitted, Judged};
use super::lane::{ServerLane, address};
use crate::core::event::yield_now;
use crate::core::time;
use crate::server::shared::ServerSettings;
use crate::sys;

/// Pause between two checks of all lanes.
const PAUSE: Duration = Duration::from_secs(10);

/// How long the flows of a client that may not serve any more may go on, at most.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Certificates that are checked before the core's other tasks get a turn; these take some
/// milliseconds.
const CHECKS_PER_TURN: usize = 16;

/// Checks the lanes of a door for as long as the door is there.
pub(super) async fn run(door: Weak<Door>) {
    loop {
        let Some(here) = door.upgrade() else { return };
        let settings = here.settings();
        here.show(&settings);
        let now_s = seconds_since_1970();
        let mut judged_anew = 0;
        let lanes: Vec<_> = here.registered.borrow().values().cloned().collect();
        for lane in lanes {
            if lane.withdrawn.get() {
                continue;
            }
            let Some(admitted) = lane.admitted.get() else {
                continue;
            };
            let judged = admitted.judged.get();
            match refusal(&lane, admitted, &settings, now_s) {
                Some(why) => withdraw(&here, &lane, why),
                None => admitted.judged.set(Judged::by(&settings)),
            }
            judged_anew += usize::from(judged != Judged::by(&settings));
            if judged_anew >= CHECKS_PER_TURN {
                judged_anew = 0;
                yield_now().await;
            }
        }
        drop(settings);
        let _sooner = here.recheck.cuts_short(time::sleep(PAUSE)).await;
    }
}

/// The reason for which the lane's client would not be let in now, if there is one. It is judged
/// once for each configuration. The certificate is verified only if the CAs or revocation lists
/// have changed, because that costs some hundred microseconds.
fn refusal(
    lane: &ServerLane,
    admitted: &Admitted,
    settings: &ServerSettings,
    now_s: i64,
) -> Option<String> {
    if admitted.expiry_s.is_some_and(|expiry_s| expiry_s <= now_s) {
        return Some("its certificate has expired".into());
    }
    let judged = admitted.judged.get();
    if judged.generation == settings.generation {
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
        if judged.trusted == settings.credentials.trusted {
            return None;
        }
        let store = settings.store.as_ref()?;
        let checked = lane
            .quic
            .with_tls(|ssl| sys::tls::check_client_against(ssl, store));
        if let Err(why) = checked {
            return Some(format!("its certificate is not good any more: {why}"));
        }
    }
    None
}

/// Withdraws a lane: it gets no new flow, its client is told so, and it ends after a while.
fn withdraw(door: &Rc<Door>, lane: &Rc<ServerLane>, why: String) {
    lane.withdrawn.set(true);
    door.counters().lanes_withdrawn.increment();
    if let Some(suppressed) = door.context().handshake_log.pass(Instant::now()) {
        tracing::warn!(
            client = lane.client_id(),
            peer = address(&lane.quic),
            why,
            suppressed,
            "client may not serve here any more; it gets no new flow and is disconnected"
        );
    }
    let timeout = door.settings().server().drain_timeout.min(DRAIN_MAX);
    door.lane_takes_no_more(lane);
    lane.quic.send_control(&Message::GoAway(GoAway {
        reason: GoAwayReason::Withdrawn,
        drain_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    }));
    let lane = Rc::downgrade(lane);
    crate::core::task::spawn(async move {
        time::sleep(timeout).await;
        if let Some(lane) = lane.upgrade() {
            lane.quic.close(LaneError::Unauthenticated, &why);
        }
    });
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
