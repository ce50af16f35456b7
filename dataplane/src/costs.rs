//! The cost of things that cores share, or that every visitor passes: the measured part of how far
//! a machine with more cores than one has at hand will scale.
//!
//! These are measurements, which plain tests ignore, because a time is never asserted:
//!
//! ```sh
//! cargo test --release --locked --workspace --bin qmux-dp costs -- --ignored --nocapture \
//!     --test-threads=1
//! ```
//!
//! Two threads on two CPUs show whether a thing is shared at all: if it is not, it costs each of
//! them as much as it costs one alone.

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use qmux_config::LoadBalancer;
use qmux_proto::Protocol;
use qmux_proto::cid::{CID_LEN, SHORT_HEADER_DCID_OFFSET, core_of_packet};
use rustc_hash::FxBuildHasher;

use crate::client::mail::ClientMail;
use crate::core::counters::CoreCounters;
use crate::core::mailbox::Mailbox;
use crate::server::pool::fixture::OneService;
use crate::server::pool::membership::LaneMembership;
use crate::server::pool::service::{ClientPool, FlowTicket};
use crate::sys::tcp::refuse;
use crate::sys::{bind, cpu, steering};

/// How long one thing is measured.
const MEASURED: Duration = Duration::from_millis(200);

/// Repetitions between two readings of the clock.
const CHUNK: u32 = 256;

/// Number of cores of the machine that the measurements are about.
const CORES: usize = 64;

/// Repeats something and returns what one time takes, in nanoseconds.
pub(crate) fn each_ns(mut action: impl FnMut()) -> f64 {
    for _ in 0..CHUNK {
        action();
    }
    let (mut times, began) = (0_u64, Instant::now());
    loop {
        for _ in 0..CHUNK {
            action();
        }
        times += u64::from(CHUNK);
        let elapsed = began.elapsed();
        if elapsed >= MEASURED {
            return elapsed.as_nanos() as f64 / times as f64;
        }
    }
}

/// Pins the calling thread to the `nth` CPU that it may use, counted around.
fn pin(nth: usize) {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(cpu) = nth.checked_rem(cpus.len()) {
        cpu::pin_current_thread(cpus[cpu].id);
    }
}

/// Measures on this many threads at a time, each on a CPU of its own as far as there are enough;
/// returns the mean over the threads.
pub(crate) fn each_ns_on<T: Send>(
    threads: usize,
    make: impl Fn(usize) -> T + Sync,
    action: impl Fn(&mut T) + Sync,
) -> f64 {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|index| {
                let (barrier, make, action) = (&barrier, &make, &action);
                scope.spawn(move || {
                    pin(index);
                    let mut own = make(index);
                    barrier.wait();
                    each_ns(|| action(&mut own))
                })
            })
            .collect();
        let times = running.into_iter().map(|it| it.join().expect("no panic"));
        times.sum::<f64>() / threads as f64
    })
}

/// Prints a cost on one thread and on two.
pub(crate) fn print_on_both<T: Send>(
    name: &str,
    make: impl Fn(usize) -> T + Sync,
    action: impl Fn(&mut T) + Sync,
) {
    let one = each_ns_on(1, &make, &action);
    let two = each_ns_on(2, &make, &action);
    println!("{name:<68} {one:>9.1} ns   two threads, each {two:>9.1} ns");
}

fn print(name: &str, ns: f64) {
    println!("{name:<68} {ns:>9.1} ns");
}

/// A pool with this many clients, each with a lane on every core.
fn pool_of(clients: usize, balancer: LoadBalancer) -> (OneService, Vec<LaneMembership>) {
    let pool = OneService::new(balancer, CORES);
    let mut lanes = Vec::new();
    for client in 0..clients {
        let id = format!("client-{client}");
        for core in 0..CORES {
            let joined = pool.join(&id, Default::default(), None, core, Instant::now());
            lanes.push(joined.expect("nobody else").membership);
        }
    }
    (pool, lanes)
}

fn pick(pool: &ClientPool) -> FlowTicket {
    let none_tried = Default::default();
    pool.pick(Protocol::Tcp, &none_tried, Instant::now())
        .expect("a client")
}

#[test]
#[ignore = "measures"]
fn balancing() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        for clients in [1, 10, 100, 1_000] {
            let (pool, _lanes) = pool_of(clients, balancer);
            let name = format!("choice among {clients} clients, {balancer:?}, and the flow's end");
            print_on_both(&name, |_| (), |()| drop(black_box(pick(&pool))));
        }
    }
}

#[test]
#[ignore = "measures"]
fn counters() {
    let shared = CachePadded::new(AtomicUsize::new(0));
    print_on_both(
        "atomic add, one counter that the threads share",
        |_| (),
        |()| {
            shared.fetch_add(1, Ordering::Relaxed);
        },
    );
    print_on_both(
        "atomic add, a counter of each thread's own",
        |_| CachePadded::new(AtomicUsize::new(0)),
        |own| {
            own.fetch_add(1, Ordering::Relaxed);
        },
    );
    print_on_both(
        "a core's own counter (load and store)",
        |_| Box::<CoreCounters>::default(),
        |own| black_box(&own.tcp_bytes_in).add(1),
    );
    let all: Vec<CoreCounters> = (0..CORES).map(|_| CoreCounters::default()).collect();
    let read = || {
        let mut sum = 0;
        for core in &all {
            core.for_each(|_, _, value| sum += value);
        }
        black_box(sum);
    };
    print("reading all counters of 64 cores", each_ns(read));
}

#[test]
#[ignore = "measures"]
fn mailboxes() {
    let (mailbox, wake) = Mailbox::<ClientMail>::new().expect("a socket pair");
    let mut byte = [0; 8];
    let awake = || {
        mailbox.send(ClientMail::ServiceHealth).expect("room");
        black_box(mailbox.take());
    };
    // The first message leaves a wake-up pending, as for a core that is awake.
    print(
        "mail to a core that is awake, put in and taken out",
        each_ns(awake),
    );
    let asleep = || {
        mailbox.rearm();
        mailbox.send(ClientMail::ServiceHealth).expect("room");
        black_box(mailbox.take());
        wake.recv(&mut byte).expect("a wake-up");
    };
    wake.recv(&mut [0; 8]).expect("the pending one");
    print("the same with a wake-up sent and taken", each_ns(asleep));

    let (there, there_wake) = Mailbox::new().expect("a socket pair");
    let (back, back_wake) = Mailbox::new().expect("a socket pair");
    let there = &there;
    let back = &back;
    let round_trip = thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            loop {
                match next(there, &there_wake) {
                    ClientMail::Plan => return,
                    mail => back.send(mail).expect("room"),
                }
            }
        });
        pin(0);
        let ns = each_ns(|| {
            there.send(ClientMail::ServiceHealth).expect("room");
            next(back, &back_wake);
        });
        there.send(ClientMail::Plan).expect("room");
        ns
    });
    print(
        "hand-over to another CPU that sleeps, one way, waiting included",
        round_trip / 2.0,
    );
}

/// Waits for mail, as a core does.
fn next(mailbox: &Mailbox<ClientMail>, wake: &UnixDatagram) -> ClientMail {
    loop {
        mailbox.rearm();
        if let Some(mail) = mailbox.take() {
            return mail;
        }
        // Adopted sockets do not block; this one is to wait.
        wake.set_nonblocking(false).expect("a socket");
        let _woken = wake.recv(&mut [0; 8]);
    }
}

#[test]
#[ignore = "measures"]
fn lookups() {
    for lanes in [1_usize, 1_000, 100_000] {
        let ids: Vec<[u8; CID_LEN]> = (0..lanes)
            .map(|_| std::array::from_fn(|_| rand::random()))
            .collect();
        let by_cid: HashMap<[u8; CID_LEN], usize, FxBuildHasher> = ids
            .iter()
            .enumerate()
            .map(|(lane, id)| (*id, lane))
            .collect();
        let mut turn = 0;
        let ns = each_ns(|| {
            // The order is not that of insertion, so that caches help as little as in practice.
            turn = (turn + 7_919) % ids.len();
            black_box(by_cid.get(&ids[turn]));
        });
        print(
            &format!("a packet's lane by its connection id, {lanes} lanes on the core"),
            ns,
        );
    }
    let packet = [0x40_u8; 64];
    print(
        "whose core a packet is for, in our code",
        each_ns(|| {
            black_box(core_of_packet(black_box(&packet), CORES));
        }),
    );
    println!();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("literal");
    for (sockets, steered) in [(1, false), (CORES, false), (CORES, true)] {
        let first = bind::udp_reuseport(any).expect("bind");
        let addr = first.local_addr().expect("bound");
        let mut group = vec![first];
        group.extend((1..sockets).map(|_| bind::udp_reuseport(addr).expect("bind")));
        if steered {
            steering::attach(&group[0], sockets).expect("attach");
        }
        let how = if steered {
            "by our program"
        } else {
            "by the kernel's hash"
        };
        let ns = delivery_ns(&group, addr);
        print(
            &format!("a packet sent to one of {sockets} sockets, chosen {how}"),
            ns,
        );
    }
}

/// The cost of sending a packet over loopback, with its delivery to a socket of the group, but
/// without taking it out.
fn delivery_ns(group: &[UdpSocket], addr: SocketAddr) -> f64 {
    const PACKETS: usize = 64;
    let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
    sender.connect(addr).expect("connect");
    for socket in group {
        socket.set_nonblocking(true).expect("a socket");
    }
    let mut packet = [0x40_u8; 64];
    let (mut sending, mut sent) = (Duration::ZERO, 0_u32);
    while sending < MEASURED {
        let began = Instant::now();
        for index in 0..PACKETS {
            packet[SHORT_HEADER_DCID_OFFSET] = index as u8;
            sender.send(&packet).expect("sent");
        }
        sending += began.elapsed();
        sent += PACKETS as u32;
        for socket in group {
            while socket.recv(&mut [0; 64]).is_ok() {}
        }
    }
    sending.as_nanos() as f64 / f64::from(sent)
}

#[test]
#[ignore = "measures"]
fn accepting() {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("literal");
    for sockets in [1, CORES] {
        let first = bind::tcp_reuseport(any).expect("bind");
        let addr = first.local_addr().expect("bound");
        let mut group = vec![first];
        group.extend((1..sockets).map(|_| bind::tcp_reuseport(addr).expect("bind")));
        let (mut connecting, mut accepting, mut closing) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut count = 0_u32;
        while connecting + accepting + closing < MEASURED * 2 {
            let began = Instant::now();
            let visitors: Vec<TcpStream> = (0..256)
                .map(|_| TcpStream::connect(addr).expect("connected"))
                .collect();
            connecting += began.elapsed();
            let began = Instant::now();
            let mut accepted = Vec::with_capacity(visitors.len());
            for socket in &group {
                while let Ok((stream, _)) = socket.accept() {
                    accepted.push(stream);
                }
            }
            accepting += began.elapsed();
            count += accepted.len() as u32;
            // The visitors are reset, so that no port waits.
            visitors.into_iter().for_each(refuse);
            let began = Instant::now();
            drop(accepted);
            closing += began.elapsed();
        }
        let each = |time: Duration| time.as_nanos() as f64 / f64::from(count);
        print(
            &format!("handshake of a visitor over loopback, both ends, {sockets} listeners"),
            each(connecting),
        );
        print(
            &format!("accept of a visitor, {sockets} listeners of one port"),
            each(accepting),
        );
        print("closing it after a reset", each(closing));
    }
    // Two cores accept at a time, each from its own socket, each with its own visitors.
    print_on_both(
        "connect, accept, reset, a listener and visitors of each thread's own",
        |_| bind::tcp_alone(any).expect("bind"),
        |listener| {
            let addr = listener.local_addr().expect("bound");
            let visitor = TcpStream::connect(addr).expect("connected");
            drop(listener.accept().expect("queued"));
            refuse(visitor);
        },
    );
}
