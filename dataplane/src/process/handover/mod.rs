//! One process takes the place of another on this machine, and nobody is lost: the successor gets
//! descriptors of all the sockets of the one that runs, over a Unix socket that only their owner may
//! use.
//!
//! Until the successor could serve at once (its threads run, and whatever it needs is bound) it
//! changes nothing. Then it says which sockets it takes; the predecessor reads those no more, neither
//! for packets nor for visitors, and lets its flows finish, which the successor passes packets on for
//! ([`crate::server::succession`]). Its clients are told that it drains, and come back to the
//! successor within a moment; visitors who come in that moment wait in the queues of the sockets,
//! which both processes share. What the successor has no use for, the door of an address that the
//! configuration does not name any more, the predecessor keeps until the flows there have ended.
//!
//! Who has the sockets is decided once, at one place ([`Listening::hand_over`]): a process that has
//! begun to close them hands nothing over, and one that has handed over closes nothing of it.

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

/// How long the admin endpoint's address is waited for, which the predecessor gives up when it is
/// told to.
const ADMIN_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two attempts.
const ADMIN_PAUSE: Duration = Duration::from_millis(20);

/// From here on this process serves, and passes on what is for lanes of the one before.
///
/// # Errors
/// If that one keeps its sockets.
pub(crate) fn serve_after(inherited: Inherited, listening: &Listening) -> Result<(), Failure> {
    inherited.serve()?;
    listening.let_in();
    tracing::info!("this process takes the place of the one before");
    Ok(())
}

/// The admin endpoint's socket, once the predecessor has given it up; without it if that takes too
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
