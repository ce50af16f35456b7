//! A second handle of the cores' sockets for TCP visitors, and the one place where it is decided
//! who has them: this process, a successor, or nobody.
//!
//! Sockets that close are closed to new visitors together, because the cores share ports, and a
//! visitor who is kept away from one must not come to another that is about to close. What is done
//! to a socket is done to the successor's as well, so a stop and a handover never both happen to
//! one. Whichever comes first under this lock is what happens.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::server::ids::EntranceId;
use crate::server::shared::plan::{DoorSockets, Plan};
use crate::server::succession::{SocketUse, Taken};
use crate::sys::syn_filter;

/// The sockets of each entrance, with their addresses.
type Sockets = HashMap<EntranceId, Vec<(SocketAddr, TcpListener)>>;

/// The sockets by their entrances.
#[derive(Debug)]
pub(crate) struct Listening {
    state: Mutex<State>,
    has_changed: Condvar,
}

#[derive(Debug)]
struct State {
    sockets: Sockets,
    whose: Whose,
    /// Whether the cores are following a plan that closes something.
    is_changing: bool,
    /// Number of such plans so far.
    closings: u64,
}

/// Who has the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    /// This process has the sockets, except for those of a successor. Nothing is opened any more.
    OursNoMore,
    /// Nobody has the sockets: they are closed, or about to be.
    Nobodys,
}

/// Stands for a plan that the cores follow, until this is dropped.
#[derive(Debug)]
pub(crate) struct Changing<'a>(&'a Listening);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.lock().is_changing = false;
        self.0.has_changed.notify_all();
    }
}

/// The state of the sockets when they were lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsOf(u64);

/// Why a successor does not get the sockets although they were lent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// This process ends, and has begun to close the sockets.
    Ends,
    /// This process has closed some of the sockets since they were lent.
    HasChanged,
}

impl Listening {
    /// No sockets yet.
    pub(crate) fn new() -> Listening {
        Listening {
            state: Mutex::new(State {
                sockets: HashMap::new(),
                whose: Whose::Ours,
                is_changing: false,
                closings: 0,
            }),
            has_changed: Condvar::new(),
        }
    }

    /// Adds the sockets that a plan opens, and keeps new visitors from those that it closes. `None`
    /// if the process is about to end: then nothing may be opened any more.
    ///
    /// # Errors
    /// If a socket cannot be duplicated; nothing has changed then.
    pub(crate) fn open(
        &self,
        plan: &Plan,
        sockets: &[Vec<DoorSockets>],
    ) -> io::Result<Option<Changing<'_>>> {
        let mut opened = Sockets::new();
        for of_core in sockets {
            for (door, sockets) in plan.doors.iter().zip(of_core) {
                for (service, sockets) in door.services.iter().zip(&sockets.services) {
                    for (entrance, sockets) in service.opened.iter().zip(sockets) {
                        if let Some(tcp) = &sockets.tcp {
                            let of_entrance = opened.entry(entrance.id).or_default();
                            of_entrance.push((entrance.traffic_addr, tcp.try_clone()?));
                        }
                    }
                }
            }
        }
        let mut state = self.lock();
        if state.whose != Whose::Ours {
            return Ok(None);
        }
        for id in plan.closes_tcp() {
            keep_away(state.sockets.remove(&id).into_iter().flatten());
        }
        state.sockets.extend(opened);
        if plan.closes_something() {
            state.is_changing = true;
            state.closings += 1;
        }
        Ok(Some(Changing(self)))
    }

    /// The state of the sockets, once no plan is being followed; to be asked before sockets are
    /// lent.
    pub(crate) fn as_of(&self) -> AsOf {
        let changing = |state: &mut State| state.is_changing;
        let state = self.has_changed.wait_while(self.lock(), changing);
        AsOf(state.unwrap_or_else(PoisonError::into_inner).closings)
    }

    /// Hands sockets over to a successor that has `taken` these of the lent ones: from now on they
    /// are its own, whatever becomes of this process. `into` tells the cores.
    ///
    /// # Errors
    /// The reason why the successor does not get them.
    pub(crate) fn hand_over(
        &self,
        lent: AsOf,
        taken: Taken,
        into: &OnceLock<Taken>,
    ) -> Result<(), Kept> {
        let mut state = self.lock();
        if state.whose != Whose::Ours {
            return Err(Kept::Ends);
        }
        if state.is_changing || AsOf(state.closings) != lent {
            return Err(Kept::HasChanged);
        }
        state.whose = Whose::OursNoMore;
        for sockets in state.sockets.values_mut() {
            sockets.retain(|(address, _)| !taken.has(SocketUse::Tcp, *address));
        }
        // This is under the lock, so that whoever closes sockets later finds it.
        let _first = into.set(taken);
        Ok(())
    }

    /// Keeps new TCP connections from all cores' sockets, and lets none be opened any more. The
    /// cores accept those that have begun. Sockets of a successor are left alone; true if there is
    /// one.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.whose, Whose::Nobodys);
        keep_away(std::mem::take(&mut state.sockets).into_values().flatten());
        before == Whose::OursNoMore
    }

    /// Lets new visitors in at all sockets, whatever the process that had them before has done.
    pub(crate) fn let_in(&self) {
        for (address, socket) in self.lock().sockets.values().flatten() {
            match syn_filter::detach(socket) {
                Ok(false) => {}
                Ok(true) => tracing::warn!(
                    %address, "the process before this one kept new visitors away; they come in again"
                ),
                Err(error) => tracing::warn!(
                    %address, %error, "the process before this one may keep new visitors away"
                ),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep_away(sockets: impl Iterator<Item = (SocketAddr, TcpListener)>) {
    for (address, listener) in sockets {
        if let Err(error) = syn_filter::attach(&listener) {
            tracing::warn!(
                %address, %error,
                "new visitors cannot be kept away; those who come in the last moment are reset"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bind::tcp_reuseport;

    /// Sockets of two entrances, in a [`Listening`] and once more, as a core or a successor has
    /// them.
    fn two() -> (Listening, [(SocketAddr, TcpListener); 2]) {
        let listening = Listening::new();
        let again = [0, 1].map(|number| {
            let socket = tcp_reuseport("127.0.0.1:0".parse().expect("literal")).expect("bound");
            let address = socket.local_addr().expect("bound");
            let again = socket.try_clone().expect("a descriptor");
            let mut state = listening.lock();
            let of_entrance = vec![(address, socket)];
            state.sockets.insert(EntranceId(number), of_entrance);
            (address, again)
        });
        (listening, again)
    }

    fn taken(address: SocketAddr) -> Taken {
        Taken::from_iter([(SocketUse::Tcp, address)])
    }

    fn lets_in((_, socket): &(SocketAddr, TcpListener)) -> bool {
        !syn_filter::detach(socket).expect("a socket")
    }

    #[test]
    fn a_stop_after_a_handover_keeps_nobody_from_what_was_taken_and_all_from_the_rest() {
        let (listening, [first, second]) = two();
        let cores = OnceLock::new();
        let lent = listening.as_of();
        let handed_over = listening.hand_over(lent, taken(first.0), &cores);
        assert_eq!(handed_over, Ok(()));
        assert!(cores.get().expect("told").has(SocketUse::Tcp, first.0));
        assert!(listening.close(), "there is a successor");
        assert!(lets_in(&first));
        assert!(!lets_in(&second));
    }

    #[test]
    fn after_a_stop_nothing_is_handed_over() {
        let (listening, [first, second]) = two();
        let cores = OnceLock::new();
        let lent = listening.as_of();
        assert!(!listening.close(), "there is no successor");
        let handed_over = listening.hand_over(lent, taken(first.0), &cores);
        assert_eq!(handed_over, Err(Kept::Ends));
        assert!(cores.get().is_none());
        assert!(!lets_in(&first) && !lets_in(&second));
    }

    #[test]
    fn what_was_closed_since_it_was_lent_is_not_handed_over() {
        let (listening, [first, _]) = two();
        let cores = OnceLock::new();
        let lent = listening.as_of();
        listening.lock().closings += 1;
        let handed_over = listening.hand_over(lent, taken(first.0), &cores);
        assert_eq!(handed_over, Err(Kept::HasChanged));
        assert!(cores.get().is_none());
        let lent = listening.as_of();
        let handed_over = listening.hand_over(lent, taken(first.0), &cores);
        assert_eq!(handed_over, Ok(()));
    }

    #[test]
    fn visitors_come_in_again_whatever_the_process_before_did_to_the_sockets() {
        let (listening, [first, second]) = two();
        keep_away([(first.0, first.1.try_clone().expect("a descriptor"))].into_iter());
        listening.let_in();
        assert!(lets_in(&first) && lets_in(&second));
    }
}
