//! Reaching a server: over QUIC, over TLS, or over whichever of them gets through.
//!
//! With `transport = "auto"` QUIC goes first. If nothing is heard for [`QUIC_ALONE`], TLS is
//! dialled beside it, and the first of the two lanes to register serves. If the other one registers
//! later, it is left like a lane that is not wanted any more. Where QUIC has failed lately, TLS
//! does not wait.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_config::Transport;
use qmux_proto::LaneError;

use super::attempt::Dialed;
use super::ending::AttemptEnd;
use super::leaving::Leaving;
use super::session::Session;
use crate::client::servers::server::ServerState;
use crate::client::{ClientCore, carrier};
use crate::core::time;
use crate::quic::lane::Lane;

/// How long QUIC may be unheard before TLS is dialled beside it: two lost first packets, or the
/// round trip of a satellite and one lost packet.
const QUIC_ALONE: Duration = Duration::from_secs(2);

/// How long QUIC gets if something was heard but the handshake goes no further, because more is
/// lost than passes.
const QUIC_HEARD_ALONE: Duration = Duration::from_secs(4);

/// What is known of an attempt to those who may give it up.
#[derive(Default)]
pub(super) struct Watch {
    given_up: Cell<bool>,
    /// The lanes that the attempt has dialled.
    lanes: RefCell<Vec<Rc<Lane>>>,
    /// The attempts that this one consists of.
    parts: RefCell<Vec<Rc<Watch>>>,
}

impl Watch {
    /// A part of the attempt, which can be given up alone.
    fn part(&self) -> Rc<Watch> {
        let part = Rc::<Watch>::default();
        part.given_up.set(self.given_up.get());
        self.parts.borrow_mut().push(Rc::clone(&part));
        part
    }

    pub(super) fn dialed(&self, lane: &Rc<Lane>) {
        self.lanes.borrow_mut().push(Rc::clone(lane));
    }

    /// Gives the attempt up, because the lane is not wanted any more. Lanes that the server cannot
    /// have accepted yet end now.
    pub(super) fn give_up(&self) {
        self.given_up.set(true);
        for lane in &*self.lanes.borrow() {
            if !lane.is_established() {
                lane.close(LaneError::Shutdown, "");
            }
        }
        for part in &*self.parts.borrow() {
            part.give_up();
        }
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// Whether the server was heard on any of the lanes.
    fn was_answered(&self) -> bool {
        self.lanes.borrow().iter().any(|lane| lane.was_answered())
    }
}

/// An attempt under way.
pub(super) type Reaching = Pin<Box<dyn Future<Output = Result<Session, AttemptEnd>>>>;

/// Dials a lane to the server and registers it.
///
/// # Errors
/// The reason why there is no lane.
pub(super) async fn server(
    core: Rc<ClientCore>,
    server: Arc<ServerState>,
    lane_index: usize,
    watch: Rc<Watch>,
) -> Result<Session, AttemptEnd> {
    let transport = carrier::transport(&core, &server);
    match transport {
        Transport::Quic => over_quic(core, server, lane_index, watch).await,
        Transport::Tls => over_tls(core, server, lane_index, watch).await,
        Transport::Auto => race(core, server, lane_index, watch).await,
    }
}

async fn over_quic(
    core: Rc<ClientCore>,
    server: Arc<ServerState>,
    lane_index: usize,
    watch: Rc<Watch>,
) -> Result<Session, AttemptEnd> {
    let dialed = Dialed::begin(&core, &server, lane_index, None, &watch)?;
    let done = dialed.complete(&watch).await;
    if done.is_ok() {
        server.transport.quic_passes();
    }
    done
}

async fn over_tls(
    core: Rc<ClientCore>,
    server: Arc<ServerState>,
    lane_index: usize,
    watch: Rc<Watch>,
) -> Result<Session, AttemptEnd> {
    let connection = carrier::dial(&core, &server).await;
    let connection = connection.map_err(AttemptEnd::Failed)?;
    if watch.is_given_up() {
        return Err(AttemptEnd::Retired);
    }
    let dialed = Dialed::begin(&core, &server, lane_index, Some(connection), &watch)?;
    dialed.complete(&watch).await
}

/// Lets an attempt complete whose lane the server may have accepted already, with a flow opened on
/// it. The lane is then left like any other.
pub(super) fn leave_once_registered(reaching: Reaching, watch: &Watch, leaving: Leaving) {
    watch.give_up();
    crate::core::task::spawn(async move {
        if let Ok(session) = reaching.await {
            session.leave(leaving).await;
        }
    });
}

/// Tries QUIC, and TLS beside it if QUIC is not heard.
async fn race(
    core: Rc<ClientCore>,
    server: Arc<ServerState>,
    lane_index: usize,
    watch: Rc<Watch>,
) -> Result<Session, AttemptEnd> {
    let (quic_watch, tls_watch) = (watch.part(), watch.part());
    let (of_core, of_server) = (Rc::clone(&core), Arc::clone(&server));
    let quic = over_quic(of_core, of_server, lane_index, Rc::clone(&quic_watch));
    let mut quic: Reaching = Box::pin(quic);
    let mut quic_end = None;
    if !server.transport.quic_is_in_vain(Instant::now()) {
        match alone(&mut quic, &quic_watch).await {
            None => {}
            Some(Err(end)) if is_unheard(&end) && !quic_watch.was_answered() => {
                quic_end = Some(end);
            }
            Some(done) => return done,
        }
    }
    if watch.is_given_up() {
        return Err(AttemptEnd::Retired);
    }
    core.context.counters.lanes_raced.increment();
    let (of_core, of_server) = (Rc::clone(&core), Arc::clone(&server));
    let tls = over_tls(of_core, of_server, lane_index, Rc::clone(&tls_watch));
    let mut tls: Reaching = Box::pin(tls);
    let mut tls_end = None;
    loop {
        let (is_tls, done) = poll_fn(|cx| {
            if quic_end.is_none()
                && let Poll::Ready(done) = quic.as_mut().poll(cx)
            {
                return Poll::Ready((false, done));
            }
            if tls_end.is_none() {
                return tls.as_mut().poll(cx).map(|done| (true, done));
            }
            Poll::Pending
        })
        .await;
        if is_tls && !matches!(&done, Err(end) if is_unheard(end)) && !quic_watch.was_answered() {
            server.transport.quic_was_in_vain(Instant::now());
        }
        match done {
            Err(end) if is_unheard(&end) => {
                let earlier = if is_tls { &mut tls_end } else { &mut quic_end };
                *earlier = Some(end);
            }
            done => {
                if is_tls && quic_end.is_none() {
                    leave_once_registered(quic, &quic_watch, Leaving::Unwanted);
                } else if !is_tls && tls_end.is_none() {
                    leave_once_registered(tls, &tls_watch, Leaving::Unwanted);
                }
                return done;
            }
        }
        if let (Some(quic), Some(tls)) = (&quic_end, &tls_end) {
            let why = format!("{quic}; and not over TLS either: {tls}");
            return Err(match quic {
                AttemptEnd::NoRoute(_) => AttemptEnd::NoRoute(why),
                _ => AttemptEnd::Failed(why),
            });
        }
    }
}

/// Runs QUIC while TLS waits, and returns the result if there is one in that time.
async fn alone(quic: &mut Reaching, watch: &Watch) -> Option<Result<Session, AttemptEnd>> {
    let unheard = time::timeout(QUIC_ALONE, quic.as_mut()).await;
    match unheard {
        Ok(done) => Some(done),
        Err(_) if watch.was_answered() => {
            let slow = time::timeout(QUIC_HEARD_ALONE - QUIC_ALONE, quic.as_mut());
            slow.await.ok()
        }
        Err(_) => None,
    }
}

/// Whether there was no handshake, so that another transport may do better. Any other end is the
/// server's word.
fn is_unheard(end: &AttemptEnd) -> bool {
    matches!(end, AttemptEnd::Failed(_) | AttemptEnd::NoRoute(_))
}
