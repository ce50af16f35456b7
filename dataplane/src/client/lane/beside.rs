//! Dialling a second lane beside one that nobody answers.
//!
//! There may be another server behind an address from one moment to the next: a DNAT rule or a
//! balancer was changed, and still sends the old lane's packets to a server that is gone. A
//! restarted server answers that it does not know the lane; a server that is gone says nothing, and
//! the health timeout is half a minute. So after two seconds without any answer another lane is
//! dialled from a new port, while the old one goes on asking. The lane that is heard first wins:
//! - If it is the old lane, the new one is left, with any flow that the server may have given it
//!   meanwhile.
//! - If the new lane is registered, it serves. With another server, the old lane is closed soon,
//!   and its flows are reset. With the same server, only the old path is broken, and the old lane
//!   may carry on with its flows when it is heard again.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::attempt::another;
use super::backoff::Backoff;
use super::ending::{AttemptEnd, Causes};
use super::leaving::Leaving;
use super::reach::{Watch, leave_once_registered};
use super::session::Session;
use super::supervisor::Supervisor;
use crate::client::ClientCore;

/// The result of dialling a second lane.
enum Outcome {
    /// The old lane serves on.
    Old,
    /// The new lane has taken the place of the old one.
    New(Box<Session>),
    /// The old lane has stopped serving.
    Over(AttemptEnd),
}

/// Serves on `session`, and on the lanes that take its place, until the last of them ends or is
/// left.
pub(super) async fn serve(
    core: &Rc<ClientCore>,
    supervisor: &Supervisor,
    mut session: Session,
) -> AttemptEnd {
    let mut backoff = Backoff::default();
    let mut beside_from = Instant::now();
    loop {
        supervisor.serves(Some(session.lane()));
        let mut over = session.serve(supervisor, beside_from).await;
        if over.is_none() {
            match dial(core, supervisor, &mut session).await {
                Outcome::Old => {
                    beside_from = Instant::now() + backoff.next(rand::random());
                }
                Outcome::New(new) => {
                    let old = std::mem::replace(&mut session, *new);
                    give_up(core, old, &session);
                    backoff.reset();
                }
                Outcome::Over(end) => over = Some(end),
            }
        }
        let Some(end) = over else { continue };
        if let Some(leaving) = end.leaving(supervisor.leaving()) {
            crate::core::task::spawn(session.leave(leaving));
        }
        return end;
    }
}

/// Leaves the lane `old`, whose place `new` has taken.
fn give_up(core: &ClientCore, old: Session, new: &Session) {
    core.context.counters.lanes_taken_over.increment();
    let same_server = new.has_server_of(&old);
    if let Some(suppressed) = core.context.connect_log.pass(Instant::now()) {
        tracing::warn!(
            server = core.shared.title(&new.lane().server),
            same_server,
            suppressed,
            "a lane got no answer; another one, dialled from a new port, has taken its place"
        );
    }
    let leaving = if same_server {
        Leaving::TakenOver
    } else {
        Leaving::ServerReplaced
    };
    crate::core::task::spawn(old.leave(leaving));
}

fn log_in_vain(supervisor: &Supervisor, why: &AttemptEnd) {
    tracing::debug!(server = %supervisor.server, %why, "dialled beside a lane in vain");
}

/// Dials another lane while `old` goes on asking.
async fn dial(core: &Rc<ClientCore>, supervisor: &Supervisor, old: &mut Session) -> Outcome {
    core.context.counters.lanes_dialed_beside.increment();
    let watch = Rc::<Watch>::default();
    let mut new = another(core, &supervisor.server, supervisor.lane, &watch);
    let first = {
        let mut old = pin!(old.serve_unanswered(supervisor));
        poll_fn(|cx| {
            if let Poll::Ready(over) = old.as_mut().poll(cx) {
                return Poll::Ready(Err(over));
            }
            new.as_mut().poll(cx).map(Ok)
        })
        .await
    };
    match first {
        Ok(Ok(session)) => Outcome::New(Box::new(session)),
        Ok(Err(why)) => {
            log_in_vain(supervisor, &why);
            Outcome::Old
        }
        // The server is back, and answers whoever dials now. The first packets of the new lane may
        // have been lost before that, and its next ones come only after seconds, so it is dialled
        // again.
        Err(Some(AttemptEnd::Ended(end))) if Causes::of(&end).restart => {
            leave_once_registered(new, &watch, Leaving::Unwanted);
            Outcome::Over(AttemptEnd::Ended(end))
        }
        Err(Some(AttemptEnd::Ended(end))) => match supervisor.unless_retired(new.as_mut()).await {
            Some(Ok(session)) => Outcome::New(Box::new(session)),
            Some(Err(why)) => {
                log_in_vain(supervisor, &why);
                Outcome::Over(AttemptEnd::Ended(end))
            }
            None => {
                leave_once_registered(new, &watch, Leaving::Unwanted);
                Outcome::Over(AttemptEnd::Ended(end))
            }
        },
        Err(over) => {
            leave_once_registered(new, &watch, Leaving::Unwanted);
            over.map_or(Outcome::Old, Outcome::Over)
        }
    }
}
