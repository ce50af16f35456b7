//! Ten thousand clients that come back after a restart of their server, by seeded simulation.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::backoff::Backoff;

/// Clients of the restart below.
const CLIENTS: usize = 10_000;

/// One step of the simulated clock.
const TICK: Duration = Duration::from_millis(10);

/// Handshakes that the server completes in a tick: 2,000 in a second.
const HANDSHAKES_PER_TICK: usize = 20;

/// Handshakes that may wait at the server; more are refused (`PLACES_MAX` of
/// `quic/admission`).
const WAITING_MAX: usize = 1_024;

/// A client whose handshake was refused hears nothing: it repeats its first packet after these
/// pauses (RFC 9002 section 6.2, from an initial round trip time of 333 ms), and gives up after 5 s
/// in all (`handshake_idle_timeout`).
const REPEATS_MS: [u64; 2] = [1_000, 2_000];
const REPEATS: usize = REPEATS_MS.len() + 1;
const GIVES_UP_AFTER_MS: u64 = 2_000;

/// 5 s of handshakes, and the pauses of those who were refused again and again.
const ALL_BACK_WITHIN_S: f64 = 30.0;

/// One client of the restart.
#[derive(Clone, Copy, PartialEq)]
enum Client {
    /// Begins an attempt at this time.
    Waits(Duration),
    /// Repeats its first packet at this time, after this many repetitions.
    Repeats(Duration, usize),
    Queued,
    Registered,
}

/// The result of a restart.
struct Restart {
    /// First packets, with repetitions, in each second.
    attempts: Vec<usize>,
    /// The most attempts in one tick after the server was up.
    peak: usize,
    refused: usize,
    /// When half, nearly all, and all of the clients were registered, in ticks after the server was
    /// up.
    half: usize,
    nearly_all: usize,
    all: usize,
    /// Handshakes completed while some client waited, as a share of what the server could do until
    /// the last one.
    busy: f64,
}

/// All clients lose their lane at once; attempts fail at once while the server is down, for `down`.
/// `jitter` draws the numbers of the back-off.
fn restart(down: Duration, seed: u64, jitter: fn(&mut StdRng) -> f64) -> Restart {
    let mut random = StdRng::seed_from_u64(seed);
    let mut backoffs: Vec<Backoff> = (0..CLIENTS).map(|_| Backoff::default()).collect();
    let mut clients: Vec<Client> = backoffs
        .iter_mut()
        .map(|backoff| Client::Waits(backoff.next(jitter(&mut random))))
        .collect();
    let mut queue = VecDeque::new();
    let mut result = Restart {
        attempts: Vec::new(),
        peak: 0,
        refused: 0,
        half: 0,
        nearly_all: 0,
        all: 0,
        busy: 0.0,
    };
    let (mut registered, mut tick) = (0, 0);
    while registered < CLIENTS {
        let now = TICK * tick;
        let up = now >= down;
        let mut begun = 0;
        for (index, client) in clients.iter_mut().enumerate() {
            let repeats = match *client {
                Client::Waits(until) if until <= now => 0,
                Client::Repeats(until, REPEATS) if until <= now => {
                    *client = Client::Waits(now + backoffs[index].next(jitter(&mut random)));
                    continue;
                }
                Client::Repeats(until, repeats) if until <= now => repeats,
                _ => continue,
            };
            begun += 1;
            if up && queue.len() < WAITING_MAX {
                queue.push_back(index);
                *client = Client::Queued;
                continue;
            }
            result.refused += usize::from(up);
            *client = if up {
                let pause_ms = REPEATS_MS
                    .get(repeats)
                    .copied()
                    .unwrap_or(GIVES_UP_AFTER_MS);
                Client::Repeats(now + Duration::from_millis(pause_ms), repeats + 1)
            } else {
                Client::Waits(now + backoffs[index].next(jitter(&mut random)))
            };
        }
        for index in queue.drain(..queue.len().min(HANDSHAKES_PER_TICK)) {
            clients[index] = Client::Registered;
            registered += 1;
        }
        let second = now.as_secs() as usize;
        result.attempts.resize(second + 1, 0);
        result.attempts[second] += begun;
        if up {
            result.peak = result.peak.max(begun);
            let since = (tick as usize) - (down.as_millis() / TICK.as_millis()) as usize;
            for (share, at) in [
                (50, &mut result.half),
                (99, &mut result.nearly_all),
                (100, &mut result.all),
            ] {
                if *at == 0 && registered * 100 >= CLIENTS * share {
                    *at = since + 1;
                }
            }
        }
        tick += 1;
        assert!(tick < 100_000, "the clients never come back");
    }
    result.busy = CLIENTS as f64 / (result.all * HANDSHAKES_PER_TICK) as f64;
    result
}

fn full(random: &mut StdRng) -> f64 {
    random.random()
}

fn none(_: &mut StdRng) -> f64 {
    1.0
}

#[test]
fn ten_thousand_clients_come_back_after_a_restart_without_a_stampede() {
    println!(
        "{CLIENTS} clients, a server that completes 2,000 handshakes/s, {WAITING_MAX} waiting at most"
    );
    // Where probes wait for the server rather than attempts, all come within the first delay: as if
    // it was not away.
    for down_s in [0, 1, 5, 30] {
        let down = Duration::from_secs(down_s);
        let jitter = restart(down, 1, full);
        let in_step = restart(down, 1, none);
        for (name, run) in [("full jitter", &jitter), ("no jitter", &in_step)] {
            let total: usize = run.attempts.iter().sum();
            println!(
                "down {down_s:>2} s, {name:<11}: back after the server: 50 % {:.2} s, 99 % {:.2} s, all {:.2} s; busy {:.0} %; peak {} attempts in 10 ms, {} refused, {:.1} attempts per client; per second: {:?}",
                run.half as f64 / 100.0,
                run.nearly_all as f64 / 100.0,
                run.all as f64 / 100.0,
                run.busy * 100.0,
                run.peak,
                run.refused,
                total as f64 / CLIENTS as f64,
                run.attempts
            );
        }
        let total: usize = jitter.attempts.iter().sum();
        assert!(total <= CLIENTS * 40, "{total} attempts");
        assert!(
            jitter.peak * 10 <= in_step.peak,
            "{} and {}",
            jitter.peak,
            in_step.peak
        );
        assert!(jitter.half <= in_step.half && jitter.all <= in_step.all);
        if down_s == 0 {
            // Within the first delay come five times as many as may wait: the others get in when
            // they come again.
            assert!(jitter.refused >= CLIENTS / 2, "{}", jitter.refused);
            let seconds = jitter.all as f64 / 100.0;
            assert!(seconds <= ALL_BACK_WITHIN_S, "{seconds} s");
        }
    }
}
