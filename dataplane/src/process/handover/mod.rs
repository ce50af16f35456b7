//! Handover: one process takes the place of another on this machine without losing anybody. The
//! successor gets descriptors of all sockets of the running process, over a Unix socket that only
//! their owner may use.
//!
//! Until the successor could serve at once (its threads run, and whatever it needs is bound) it
//! changes nothing. Then it says which sockets it takes. The predecessor stops reading those, both
//! for packets and for visitors, and lets its flows finish, for which the successor passes packets
//! on ([`crate::server::succession`]). Its clients are told that it drains, and connect to the
//! successor within a moment. Visitors who come in that moment wait in the queues of the sockets,
//! which both processes share. Sockets that the successor has no use for, such as the door of an
//! address that the configuration does not name any more, stay with the predecessor until the flows
//! there have ended.
//!
//! It is decided once, in one place ([`Listening::hand_over`]), who has the sockets: a process that
//! has begun to close them hands nothing over, and one that has handed over closes nothing of it.

mod giving;
mod messages;
mod peer;
mod taking;

use std::time::{Duration, Instant};

use qmux_config::Admin;

use super::admin::{self, AdminSocket};
use super::exit::Failure;
use super::reload::Listening;
pub(crate) use giving::{Giver, Successors, Waiting};
pub(crate) use taking::Inherited;

/// How long to wait for the admin endpoint's address, which the predecessor gives up when it is
/// told to.
const ADMIN_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two attempts.
const ADMIN_PAUSE: Duration = Duration::from_millis(20);

/// Serves from now on in place of the predecessor, and passes on packets for its lanes.
///
/// # Errors
/// If the predecessor keeps its sockets.
pub(crate) fn serve_after(inherited: Inherited, listening: &Listening) -> Result<(), Failure> {
    inherited.serve()?;
    listening.let_in();
    tracing::info!("this process takes the place of the one before");
    Ok(())
}

/// The admin endpoint's socket, once the predecessor has given it up. `None` if that takes too
/// long, because visitors come first.
pub(crate) fn bind_after(admin: &Admin) -> Option<AdminSocket> {
    let until = Instant::now() + ADMIN_PATIENCE;
    loop {
        match admin::bind(admin) {
            Ok(socket) => return Some(socket),
            Err(_) if Instant::now() < until => std::thread::sleep(ADMIN_PAUSE),
            Err(error) => {
                tracing::error!(%error, "this process has no admin endpoint");
                return None;
            }
        }
    }
}
