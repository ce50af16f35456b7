//! Visitors who come before any client does, at the start of a server.
//!
//! Clients whose server was restarted come back within a second. A visitor who comes before them
//! (mostly the second attempt of a load balancer) would otherwise be reset. One task of each core
//! waits for the first client of every service, because a server may have thousands of entrances.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Entrance;

/// How long after its start a server leaves visitors in the accept queue while it has no client for
/// them.
const FIRST_CLIENT_WAIT: Duration = Duration::from_secs(5);

/// Pause between two checks for first clients.
const FIRST_CLIENT_POLL: Duration = Duration::from_millis(10);

/// Lets each entrance accept visitors when its service has a client, when the wait for one is over,
/// or when the process stops.
pub(crate) async fn wait_for_first_clients(mut entrances: Vec<Rc<Entrance>>) {
    let deadline = Instant::now() + FIRST_CLIENT_WAIT;
    loop {
        let over = Instant::now() >= deadline;
        entrances.retain(|entrance| {
            let waits = !over && !entrance.is_draining() && !entrance.pool().is_served();
            if !waits {
                entrance.begin_to_accept();
            }
            waits
        });
        if entrances.is_empty() {
            return;
        }
        crate::core::time::sleep(FIRST_CLIENT_POLL).await;
    }
}
