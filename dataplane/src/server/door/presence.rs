//! The log lines about clients that connect and go, and about services that they reach or do not:
//! one line each, however many lanes a client has.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Door;
use crate::core::CoreContext;
use crate::quic::end::LaneEnd;
use crate::server::pool::client::Client;
use crate::server::shared::ServedService;

/// How long to wait for further lanes of a client that has just connected, before they are counted
/// for its log line.
const LANES_COME: Duration = Duration::from_millis(500);

/// Logs a client whose first lane has registered, once its other lanes have had time to come.
pub(crate) fn say_up(context: &Rc<CoreContext>, client: &Arc<Client>) {
    let (context, client) = (Rc::clone(context), Arc::clone(client));
    crate::core::task::spawn(async move {
        crate::core::time::sleep(LANES_COME).await;
        let lanes = client.lanes_up();
        if lanes == 0 {
            return; // Its end has been told.
        }
        if let Some(suppressed) = context.lane_log.pass(Instant::now()) {
            tracing::info!(
                client = client.client_id,
                address = client.address().map(tracing::field::display),
                lanes,
                suppressed,
                "client up"
            );
        }
    });
}

/// Logs a client whose last lane has ended.
pub(crate) fn say_down(context: &CoreContext, client: &Client, why: &LaneEnd) {
    let now = Instant::now();
    if let Some(suppressed) = context.lane_log.pass(now) {
        tracing::info!(
            client = client.client_id,
            address = client.address().map(tracing::field::display),
            after_s = now.duration_since(client.since()).as_secs(),
            %why,
            suppressed,
            "client down"
        );
    }
}

/// Counts and logs that a client reaches one of its services again, or does not reach it.
pub(crate) fn say_health(door: &Door, client: &str, service: &ServedService, healthy: bool) {
    if healthy {
        door.counters().services_up.increment();
    } else {
        door.counters().services_down.increment();
    }
    let Some(suppressed) = door.context().health_log.pass(Instant::now()) else {
        return;
    };
    let service = (!service.name.is_empty()).then_some(&service.name);
    if healthy {
        tracing::info!(
            client,
            service,
            suppressed,
            "the client reaches its service again"
        );
    } else {
        tracing::warn!(
            client,
            service,
            suppressed,
            "the client cannot reach its service; visitors go to others while there are any"
        );
    }
}
