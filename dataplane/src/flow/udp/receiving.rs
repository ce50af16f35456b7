//! Reading the datagrams of visitors and services: what the sockets of both ends have in common.

use std::io;
use std::time::Instant;

use super::moderation::Moderation;
use super::{RECEIVE_CALLS_PER_TURN, WAIT_ERROR_PAUSE, with_receive_batch};
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, yield_now};
use crate::core::pause::pause;
use crate::sys::udp::{ReceiveBatch, UdpSocket};

/// A socket that is read, and what happens to its datagrams.
pub(crate) trait Receiver {
    /// The socket.
    fn socket(&self) -> &UdpSocket;
    /// The counters of this core.
    fn counters(&self) -> &CoreCounters;
    /// Set once the socket is not to be read any more.
    fn over(&self) -> &Event;
    /// Whether the socket is to be read now.
    fn receives(&self) -> bool;
    /// Handles the datagrams of one receive call, and returns their number.
    fn handle(&self, batch: &mut ReceiveBatch) -> u32;
    /// Handles an error that a receive call returned: that of an earlier send (ICMP; udp(7)). The
    /// next call goes on.
    fn failed(&self, error: &io::Error);
}

/// Reads the socket of `receiver` until it is over.
pub(crate) async fn receive_all(receiver: &impl Receiver) {
    let moderation = Moderation::default();
    let mut pauses = false;
    while receiver.receives() {
        let socket = receiver.socket();
        if pauses {
            if receiver.over().cuts_short(pause()).await.is_none() {
                return;
            }
        } else if let Err(error) = match receiver.over().cuts_short(socket.readable()).await {
            None => return,
            Some(ready) => ready,
        } {
            receiver.counters().internal_errors.increment();
            tracing::error!(%error, "waiting for a UDP socket failed");
            crate::core::time::sleep(WAIT_ERROR_PAUSE).await;
            continue;
        }
        while receiver.receives() && turn(receiver, &moderation) {
            yield_now().await;
        }
        pauses = moderation.emptied(Instant::now());
    }
}

/// Makes some receive calls. False once the socket is drained.
fn turn(receiver: &impl Receiver, moderation: &Moderation) -> bool {
    with_receive_batch(|batch| {
        (0..RECEIVE_CALLS_PER_TURN).all(|_| once(receiver, moderation, batch))
    })
}

fn once(receiver: &impl Receiver, moderation: &Moderation, batch: &mut ReceiveBatch) -> bool {
    match receiver.socket().try_receive(batch) {
        Ok(()) => {
            moderation.received(receiver.handle(batch));
            batch.is_full()
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => {
            receiver.failed(&error);
            false
        }
    }
}
