//! Reading the datagrams of visitors and services: what the sockets of both ends have in common.

use std::io;
use std::time::Instant;

use super::moderation::Moderation;
use super::{RECEIVE_CALLS_PER_TURN, WAIT_ERROR_PAUSE, with_receive_batch};
use crate::core::counters::CoreCounters;
use crate::core::event::{Event, in_turn, yield_now};
use crate::core::pause::{NoTimer, pause};
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
    .read()
    .await;
}

/// The reading of one socket.
struct Reading<'a, R> {
    receiver: &'a R,
    moderation: Moderation,
    /// False once there was no timer for a pause: a socket can be read without pauses, too.
    may_pause: bool,
}

impl<R: Receiver> Reading<'_, R> {
    async fn read(mut self) {
        let receiver = self.receiver;
        let mut pauses = false;
        while receiver.receives() {
            let wait = async {
                if pauses {
                    match pause().await {
                        Ok(()) => return Ok(()),
                        Err(NoTimer) => self.may_pause = false,
                    }
                }
                in_turn(receiver.socket().readable()).await
            };
            let ready = receiver.over().cuts_short(wait).await;
            pauses = false;
            match ready {
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

    /// Makes some receive calls. Returns false once the socket is drained.
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
    use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
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
            assert!(self.looks.get() < 10_000, "nobody else has a turn");
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

    /// A socket that is read, with one datagram in it; its address; and the end of the reading,
    /// once the event is set.
    fn read(never_runs_dry: bool) -> (Rc<Counting>, SocketAddr, Rc<Event>) {
        let socket = StdUdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("set");
        let to = socket.local_addr().expect("an address");
        let receiver = Rc::new(Counting {
            socket: UdpSocket::adopt(socket, Purpose::Traffic).expect("adopted"),
            counters: CoreCounters::default(),
            over: Event::default(),
            is_over: Cell::new(false),
            datagrams: Cell::new(0),
            looks: Cell::new(0),
            never_runs_dry,
        });
        send(to, 1);
        let has_ended = Rc::new(Event::default());
        let (reader, end) = (Rc::clone(&receiver), Rc::clone(&has_ended));
        task::spawn(async move {
            let reading = Reading {
                receiver: &*reader,
                moderation: Moderation::always(),
                may_pause: true,
            };
            reading.read().await;
            end.set();
        });
        (receiver, to, has_ended)
    }

    fn send(to: SocketAddr, datagrams: u32) {
        let visitor = StdUdpSocket::bind("127.0.0.1:0").expect("a socket");
        for _ in 0..datagrams {
            visitor.send_to(b"datagram", to).expect("sent");
        }
    }

    fn run_on_any(test: impl Future<Output = ()>) {
        monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    fn run_on_epoll(test: impl Future<Output = ()>) {
        monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    impl Counting {
        fn end(&self) {
            self.is_over.set(true);
            self.over.set();
        }
    }

    #[test]
    fn what_comes_during_a_pause_is_read_after_it() {
        run_on_any(async {
            let (receiver, to, has_ended) = read(false);
            for seen in 1..5 {
                while receiver.datagrams.get() < seen {
                    sleep(Duration::from_millis(1)).await;
                }
                send(to, 1);
            }
            receiver.end();
            has_ended.wait().await;
        });
    }

    #[test]
    fn the_end_cuts_a_pause_short() {
        run_on_any(async {
            crate::core::pause::last_for_ever();
            let (receiver, to, has_ended) = read(false);
            while receiver.looks.get() == 0 {
                yield_now().await;
            }
            send(to, 1);
            sleep(Duration::from_millis(5)).await;
            assert_eq!(receiver.looks.get(), 1, "it pauses");
            receiver.end();
            has_ended.wait().await;
        });
    }

    /// Without a timer for pauses, a socket that never runs dry leaves others their turns.
    async fn others_have_their_turns() {
        crate::core::pause::fail_from_now_on();
        let (receiver, _, has_ended) = read(true);
        for _ in 0..100 {
            yield_now().await;
        }
        let looks = receiver.looks.get();
        assert!((1..1_000).contains(&looks), "{looks}");
        receiver.end();
        has_ended.wait().await;
    }

    #[test]
    fn a_socket_that_never_runs_dry_leaves_others_their_turns() {
        run_on_any(others_have_their_turns());
    }

    #[test]
    fn on_epoll_as_well() {
        run_on_epoll(others_have_their_turns());
    }
}
