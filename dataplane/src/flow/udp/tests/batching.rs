//! The batcher, to a socket and back.

use std::io;
use std::sync::Arc;

use super::super::batch::Batcher;
use super::support::{assert_payloads, payload, receive, run, socket, std_socket};
use crate::core::counters::CoreCounters;
use crate::sys::udp::{GSO_SEGMENTS_MAX, Purpose, ReceiveBatch, UdpSocket};

struct Bench {
    from: UdpSocket,
    to: UdpSocket,
    batcher: Batcher,
    counters: Arc<CoreCounters>,
}

impl Bench {
    fn new() -> Bench {
        let counters = Arc::new(CoreCounters::default());
        Bench {
            from: socket(),
            to: socket(),
            batcher: Batcher::new(Arc::clone(&counters)),
            counters,
        }
    }

    fn push(&mut self, payload: &[u8]) {
        self.batcher
            .push(&self.from, self.to.local_addr(), None, payload);
    }

    /// Sends payloads of these sizes and checks that they arrive, whole and in order.
    async fn pass(&mut self, sizes: &[usize]) {
        let sent: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, bytes)| payload(number, *bytes))
            .collect();
        let before = (
            self.counters.udp_datagrams_out.get(),
            self.counters.udp_bytes_out.get(),
        );
        for payload in &sent {
            self.push(payload);
        }
        self.batcher.flush(&self.from);
        assert_payloads(&receive(&self.to, sent.len()).await, &sent);
        let bytes: usize = sizes.iter().sum();
        assert_eq!(
            self.counters.udp_datagrams_out.get() - before.0,
            sizes.len() as u64
        );
        assert_eq!(self.counters.udp_bytes_out.get() - before.1, bytes as u64);
        assert_eq!(self.counters.gso_fallbacks.get(), 0);
        assert!(self.batcher.take_error().is_none());
    }

    fn nothing_arrived(&self) -> bool {
        let error = self
            .to
            .try_receive(&mut ReceiveBatch::new(Purpose::Traffic));
        error.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[test]
fn payloads_of_one_size_arrive_whole_and_in_order() {
    run(async {
        let mut bench = Bench::new();
        bench.pass(&[1_150; 200]).await;
        bench.pass(&[1; 300]).await;
        bench.pass(&[9_000; 40]).await;
        bench.pass(&[32_747; 4]).await;
    });
}

#[test]
fn empty_and_largest_payloads_arrive() {
    run(async {
        let mut bench = Bench::new();
        bench.pass(&[0]).await;
        bench.pass(&[1]).await;
        bench.pass(&[65_507]).await;
        bench.pass(&[0, 0, 65_507, 0, 65_507, 1, 0]).await;
        bench.pass(&[65_494, 65_493, 65_495, 32_748, 32_748]).await;
    });
}

#[test]
fn mixed_sizes_keep_their_order() {
    run(async {
        let mut bench = Bench::new();
        bench
            .pass(&[
                100, 100, 100, 50, 50, 50, 51, 100, 0, 100, 1_150, 1_150, 7, 7, 0, 0, 3, 65_507, 3,
                3, 2, 1, 20_000, 20_000, 20_000, 20_000, 1,
            ])
            .await;
    });
}

#[test]
fn a_batch_leaves_when_it_is_full_or_ended_by_a_shorter_payload() {
    run(async {
        let mut bench = Bench::new();
        for number in 0..GSO_SEGMENTS_MAX - 1 {
            bench.push(&payload(number, 100));
        }
        assert!(bench.nothing_arrived(), "they were not collected");
        bench.push(&payload(63, 100));
        receive(&bench.to, GSO_SEGMENTS_MAX).await;

        bench.push(&payload(0, 100));
        bench.push(&payload(1, 100));
        assert!(bench.nothing_arrived());
        bench.push(&payload(2, 99));
        receive(&bench.to, 3).await;
    });
}

#[test]
fn another_destination_ends_the_batch() {
    run(async {
        let mut bench = Bench::new();
        let other = socket();
        for number in 0..30 {
            let payload = payload(number, 200);
            let to = if number % 3 == 0 {
                other.local_addr()
            } else {
                bench.to.local_addr()
            };
            bench.batcher.push(&bench.from, to, None, &payload);
        }
        bench.batcher.flush(&bench.from);
        let sent = |other: bool| -> Vec<_> {
            (0..30)
                .filter(|number| (number % 3 == 0) == other)
                .map(|number| payload(number, 200))
                .collect()
        };
        assert_payloads(&receive(&bench.to, 20).await, &sent(false));
        assert_payloads(&receive(&other, 10).await, &sent(true));
    });
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    run(async {
        let counters = Arc::new(CoreCounters::default());
        let mut batcher = Batcher::new(Arc::clone(&counters));
        let any = std::net::UdpSocket::bind("0.0.0.0:0").expect("a free port");
        let from = super::support::adopt(any);
        let to = socket();
        for asked in ["127.0.0.1", "127.0.0.9"] {
            let asked = asked.parse().expect("literal");
            for number in 0..3 {
                batcher.push(&from, to.local_addr(), Some(asked), &payload(number, 10));
            }
            batcher.flush(&from);
            let received = receive(&to, 3).await;
            assert!(received.iter().all(|(_, sender)| sender.ip() == asked));
        }
    });
}

#[test]
fn what_is_refused_is_counted_and_the_next_is_sent() {
    run(async {
        let mut bench = Bench::new();
        // A connected socket hears of a closed port by the next send.
        let closed = std_socket();
        let nobody = closed.local_addr().expect("bound");
        drop(closed);
        let from = std_socket();
        from.connect(nobody).expect("a UDP socket connects");
        bench.from = super::support::adopt(from);
        for _ in 0..4 {
            bench
                .batcher
                .push(&bench.from, nobody, None, &payload(0, 10));
            bench.batcher.flush(&bench.from);
        }
        assert_eq!(
            bench.counters.udp_datagrams_out.get(),
            4,
            "each left, after it was told of the one before"
        );
        assert_eq!(bench.counters.udp_dropped_socket_error.get(), 3);
        let error = bench.batcher.take_error().expect("it is told");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

        bench.batcher.push(
            &bench.from,
            "[2001:db8::1]:9".parse().expect("literal"),
            None,
            b"wrong family",
        );
        bench.batcher.flush(&bench.from);
        assert!(bench.counters.udp_dropped_socket_error.get() >= 4);
    });
}

/// Needs an interface with a small MTU:
/// `unshare -rn sh -c 'ip link set lo mtu 1400 up; exec "$@"' - TEST_BINARY --ignored refuses_gso`
#[test]
#[ignore = "needs a network namespace whose loopback MTU is 1,400"]
fn an_interface_that_refuses_gso_for_a_size_is_not_asked_again() {
    run(async {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let sent: Vec<_> = (0..20).map(|number| payload(number, 2_000)).collect();
            for payload in &sent {
                bench.push(payload);
            }
            bench.batcher.flush(&bench.from);
            assert_payloads(&receive(&bench.to, 20).await, &sent);
            assert_eq!(bench.counters.gso_fallbacks.get(), 1);
        }
        // Smaller ones still go in one send.
        for number in 0..20 {
            bench.push(&payload(number, 1_000));
        }
        assert!(bench.nothing_arrived());
        bench.batcher.flush(&bench.from);
        receive(&bench.to, 20).await;
        assert_eq!(bench.counters.gso_fallbacks.get(), 1);
        assert_eq!(bench.counters.udp_dropped_socket_error.get(), 0);
    });
}
