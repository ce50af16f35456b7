//! The log lines about servers that connect and go: one line each, however many lanes there are.

use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ClientCore;
use super::lane::ClientLane;
use super::servers::server::ServerState;
use super::services::answers::{ChangedAnswer, Standing, complaint};

/// How long to wait for further lanes to a server, before they are counted for its log line.
const LANES_COME: Duration = Duration::from_millis(500);

/// Logs a server, or another instance of it, to which the first lane has registered, once the other
/// lanes have had time to come.
pub(super) fn say_up(core: &Rc<ClientCore>, server: &Arc<ServerState>) {
    let (core, server) = (Rc::clone(core), Arc::clone(server));
    crate::core::task::spawn(async move {
        crate::core::time::sleep(LANES_COME).await;
        let lanes = server.lanes();
        if lanes == 0 {
            return; // Its end has been told.
        }
        if let Some(suppressed) = core.context.lane_log.pass(Instant::now()) {
            let server = core.shared.title(&server);
            tracing::info!(server, lanes, suppressed, "server up");
        }
    });
}

/// Logs a server whose last lane has ended, or is being left.
pub(super) fn say_down(core: &ClientCore, server: &ServerState, why: &dyn Display) {
    if core.context.draining.get() {
        return; // It is this client that ends.
    }
    if let Some(suppressed) = core.context.lane_log.pass(Instant::now()) {
        let server = core.shared.title(server);
        tracing::warn!(server, %why, suppressed, "server down: no lane is left");
    }
}

/// Logs that a server stops.
pub(super) fn say_drains(core: &ClientCore, server: &ServerState) {
    if server.begins_to_drain()
        && let Some(suppressed) = core.context.lane_log.pass(Instant::now())
    {
        let server = core.shared.title(server);
        tracing::info!(server, suppressed, "server drains; it sends no new flow");
    }
}

/// Logs that a server withdraws this client's services, or wants it to prove its identity again;
/// the result of the next attempt says which.
pub(super) fn say_withdrawn(core: &ClientCore, server: &ServerState) {
    if let Some(suppressed) = core.context.lane_log.pass(Instant::now()) {
        tracing::warn!(
            server = core.shared.title(server),
            suppressed,
            "the server sends no new flow: this client may not serve there any more, or must prove \
             anew who it is, which it tries"
        );
    }
}

/// Logs a changed answer of a server about a service, or its first one: one line for each service
/// and server. The rate is limited only for a server that goes on changing its mind.
pub(super) fn say_standing(lane: &ClientLane, server: &str, news: &ChangedAnswer) {
    let first = news.before == Standing::Unsaid;
    let pass = || lane.context.lane_log.pass(Instant::now());
    let Some(suppressed) = (if first { Some(None) } else { pass() }) else {
        return;
    };
    let Some(service) = lane.settings.services.all().get(news.index) else {
        return;
    };
    match (complaint(server, service, news.now), news.now) {
        (Some(text), _) => {
            tracing::warn!(server, service = service.name(), suppressed, "{text}");
        }
        (None, Standing::Accepted(there)) if first => {
            let first_port = there.map(|there| there.first);
            tracing::debug!(server, %service, first_port, "the server takes this service");
        }
        (None, Standing::Accepted(_)) => {
            tracing::info!(server, %service, suppressed, "the server takes this service now");
        }
        (None, _) => {}
    }
}
