//! Reading the datagrams of visitors and services: what the sockets of both ends have in common.

use std::io;
use std::time::Instant;

use super::moderation::Moderation;
use super::{RECEIVE_CALLS_PER_TURN, WAIT_ERROR_PAUSE, with_receive_batch};
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, in_turn, yield_now};
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
    Reading {
        receiver,
        moderation: Moderation::default(),
        may_pause: true,
    }
    .to_the_end()
    .await;
}

/// The reading of one socket.
struct Reading<'a, R> {
    receiver: &'a R,
    moderation: Moderation,
    /// False once there was no timer for a pause: whoever has none reads as well without.
    may_pause: bool,
}

impl<R: Receiver> Reading<'_, R> {
    async fn to_the_end(mut self) {
        let receiver = self.receiver;
        let mut pauses = false;
        while receiver.receives() {
            let wait = async {
                if pauses && self.pause().await {
                    return Ok(());
                }
                in_turn(receiver.socket().readable()).await
            };
            match receiver.over().cuts_short(wait).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    receiver.counters().internal_errors.increment();
                    tracing::error!(%error, "waiting for a UDP socket failed");
                    crate::core::time::sleep(WAIT_ERROR_PAUSE).await;
                    continue;
                }
            }
            while receiver.receives() && self.turn() {
                yield_now().await;
            }
            pauses = self.may_pause && self.moderation.emptied(Instant::now());
        }
    }

    /// Waits for a pause. False if there was none.
    async fn pause(&mut self) -> bool {
        let Err(error) = pause().await else {
            return true;
        };
        self.may_pause = false;
        self.receiver.counters().internal_errors.increment();
        tracing::warn!(%error, "no timer for pauses; a UDP socket is read more often than it should be");
        false
    }

    /// Makes some receive calls. False once the socket is drained.
    fn turn(&self) -> bool {
        with_receive_batch(|batch| (0..RECEIVE_CALLS_PER_TURN).all(|_| self.once(batch)))
    }

    fn once(&self, batch: &mut ReceiveBatch) -> bool {
        match self.receiver.socket().try_receive(batch) {
            Ok(()) => {
                self.moderation.received(self.receiver.handle(batch));
                batch.is_full()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                self.moderation.interrupted();
                self.receiver.failed(&error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::UdpSocket as StdUdpSocket;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::core::task;
    use crate::core::time::sleep;
    use crate::sys::udp::Purpose;

    /// Counts what comes.
    struct Counting {
        socket: UdpSocket,
        counters: CoreCounters,
        over: Event,
        is_over: Cell<bool>,
        datagrams: Cell<u32>,
        looks: Cell<u32>,
        /// Whether something else comes whenever something has been taken.
        never_runs_dry: bool,
    }

    impl Receiver for Counting {
        fn socket(&self) -> &UdpSocket {
            &self.socket
        }

        fn counters(&self) -> &CoreCounters {
            &self.counters
        }

        fn over(&self) -> &Event {
            &self.over
        }

        fn receives(&self) -> bool {
            !self.is_over.get()
        }

        fn handle(&self, batch: &mut ReceiveBatch) -> u32 {
            let mut datagrams = 0;
            batch.for_each(|_| datagrams += 1);
            self.looks.set(self.looks.get() + 1);
            self.datagrams.set(self.datagrams.get() + datagrams);
            if self.never_runs_dry {
                let itself = self.socket.local_addr();
                let sent = self.socket.try_send(b"datagram", 8, itself, None);
                sent.expect("sent");
            }
            datagrams
        }

        fn failed(&self, error: &io::Error) {
            panic!("{error}");
        }
    }

    /// A socket with datagrams in it, which is read; and the end of the reading, once the other
    /// one is set.
    fn read(datagrams: u32, never_runs_dry: bool) -> (Rc<Counting>, Rc<Event>) {
        let socket = StdUdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("set");
        let to = socket.local_addr().expect("an address");
        let visitor = StdUdpSocket::bind("127.0.0.1:0").expect("a socket");
        for _ in 0..datagrams {
            visitor.send_to(b"datagram", to).expect("sent");
        }
        let receiver = Rc::new(Counting {
            socket: UdpSocket::adopt(socket, Purpose::Traffic).expect("adopted"),
            counters: CoreCounters::default(),
            over: Event::default(),
            is_over: Cell::new(false),
            datagrams: Cell::new(0),
            looks: Cell::new(0),
            never_runs_dry,
        });
        let has_ended = Rc::new(Event::default());
        let (reader, end) = (Rc::clone(&receiver), Rc::clone(&has_ended));
        task::spawn(async move {
            let reading = Reading {
                receiver: &*reader,
                moderation: Moderation::always(),
                may_pause: true,
            };
            reading.to_the_end().await;
            end.set();
        });
        (receiver, has_ended)
    }

    fn run(test: impl Future<Output = ()>) {
        monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    #[test]
    fn a_socket_that_is_read_with_pauses_is_read_to_its_end() {
        run(async {
            let (receiver, has_ended) = read(40, false);
            while receiver.datagrams.get() < 40 {
                sleep(Duration::from_millis(1)).await;
            }
            receiver.is_over.set(true);
            receiver.over.set();
            has_ended.wait().await;
        });
    }

    #[test]
    fn the_end_cuts_a_pause_short_and_another_socket_can_pause_after_it() {
        run(async {
            for _ in 0..3 {
                let (receiver, has_ended) = read(1, false);
                while receiver.looks.get() == 0 {
                    yield_now().await;
                }
                receiver.is_over.set(true);
                receiver.over.set();
                has_ended.wait().await;
                pause().await.expect("a timer");
            }
        });
    }

    #[test]
    fn without_a_timer_for_pauses_a_socket_that_never_runs_dry_leaves_others_their_turns() {
        run(async {
            crate::core::pause::fail_from_now_on();
            let (receiver, has_ended) = read(1, true);
            while receiver.looks.get() < 100 {
                yield_now().await;
            }
            assert_eq!(receiver.counters.internal_errors.get(), 1, "said once");
            receiver.is_over.set(true);
            receiver.over.set();
            has_ended.wait().await;
        });
    }
}
