use super::*;

const LONG: Duration = Duration::from_secs(2);
const FAR: Duration = Duration::from_millis(40);
const FULL: u64 = 1_350;

const fn us(microseconds: u64) -> Duration {
    Duration::from_micros(microseconds)
}

/// A simulated socket, and how it was read.
#[derive(Debug, Default)]
struct Run {
    turns: u64,
    packets: u64,
    vain: u64,
    longest_pause: Duration,
    most_at_once: u64,
}

/// Packets of `bytes` that come every `every` along a path of this round trip, for so long.
fn stream(of: Duration, every: Duration, bytes: u64, round_trip: Duration) -> Run {
    let moderation = Moderation::default();
    let begin = Instant::now();
    run(&moderation, begin, of, every, bytes, |_| round_trip)
}

fn run(
    moderation: &Moderation,
    begin: Instant,
    of: Duration,
    every: Duration,
    bytes: u64,
    round_trip: impl Fn(Duration) -> Duration,
) -> Run {
    let (mut now, mut run) = (begin, Run::default());
    while now < begin + of {
        let come = u64::try_from((now - begin).as_nanos() / every.as_nanos()).expect("few");
        let new = come - run.packets;
        run.packets = come;
        moderation.received(new, new * bytes);
        if new > 0 {
            run.turns += 1;
            run.most_at_once = run.most_at_once.max(new);
            if moderation.asks_for_paths() {
                moderation.heard(round_trip(now - begin), now);
            }
        } else if now > begin {
            run.vain += 1;
        }
        now = match moderation.emptied(now) {
            Some(pause) => {
                run.longest_pause = run.longest_pause.max(pause);
                now + pause
            }
            // The next packet wakes, at the time at which it comes.
            None => begin + every * u32::try_from(come + 1).expect("few"),
        };
    }
    run
}

#[test]
fn full_packets_of_a_long_path_gather() {
    let run = stream(LONG, us(60), FULL, FAR);
    assert!(run.turns * 12 < run.packets, "{run:?}");
    assert!(run.vain * 100 < run.turns, "{run:?}");
    assert!(run.longest_pause <= PAUSE_MAX, "{run:?}");
}

#[test]
fn a_pause_is_a_small_part_of_the_round_trip() {
    let run = stream(LONG, us(30), FULL, PATH_MIN);
    assert!(run.turns * 12 < run.packets, "{run:?}");
    assert!(run.longest_pause * 32 <= PATH_MIN, "{run:?}");
}

#[test]
fn a_faster_link_has_shorter_pauses_with_as_many_packets() {
    let run = stream(LONG, us(12), FULL, FAR);
    assert!(run.longest_pause < us(210), "{run:?}");
    assert!(run.most_at_once <= 2 * PACKETS_PER_PAUSE, "{run:?}");
    assert!(run.turns * 10 < run.packets, "{run:?}");
}

#[test]
fn neither_short_paths_nor_small_or_rare_packets_wait() {
    for (what, run) in [
        ("short path", stream(LONG, us(60), FULL, us(15_900))),
        ("small", stream(LONG, us(60), 200, FAR)),
        ("rare", stream(LONG, us(260), FULL, FAR)),
        // 8,000 a second would do on a longer path.
        ("rare for its path", stream(LONG, us(130), FULL, PATH_MIN)),
    ] {
        assert_eq!(run.longest_pause, Duration::ZERO, "{what}: {run:?}");
        assert_eq!(run.turns, run.packets, "{what}: {run:?}");
    }
}

#[test]
fn packets_that_come_in_bunches_anyway_do_not_wait() {
    let moderation = Moderation::default();
    let mut now = Instant::now();
    for _ in 0..1_000 {
        now += us(500);
        moderation.received(PACKETS_PER_TURN_MAX, PACKETS_PER_TURN_MAX * FULL);
        assert!(!moderation.asks_for_paths());
        assert_eq!(moderation.emptied(now), None);
    }
}

#[test]
fn one_packet_of_a_shorter_path_ends_the_pauses_for_a_while() {
    let moderation = Moderation::default();
    let begin = Instant::now();
    let far = |_| FAR;
    let before = run(&moderation, begin, LONG, us(60), FULL, far);
    assert!(before.longest_pause > Duration::ZERO);
    moderation.heard(us(200), begin + LONG);
    let wary = REST + WARY_WINDOWS * WINDOW;
    let within = run(&moderation, begin + LONG, wary, us(60), FULL, far);
    assert_eq!(within.longest_pause, Duration::ZERO, "{within:?}");
    let after = run(&moderation, begin + LONG + wary, LONG, us(60), FULL, far);
    assert!(after.turns * 10 < after.packets, "{after:?}");
}

#[test]
fn a_server_that_hears_both_kinds_of_lanes_has_no_pauses() {
    let moderation = Moderation::default();
    // Each half second a lane nearby says something.
    let kinds = |at: Duration| {
        if at.subsec_millis() % 500 < 2 {
            us(300)
        } else {
            FAR
        }
    };
    let run = run(&moderation, Instant::now(), 10 * LONG, us(60), FULL, kinds);
    assert!(run.turns * 100 > run.packets * 97, "{run:?}");
}

#[test]
fn where_nothing_more_comes_there_is_one_pause_in_vain() {
    let moderation = Moderation::default();
    let begin = Instant::now();
    run(&moderation, begin, LONG, us(60), FULL, |_| FAR);
    let mut now = begin + LONG;
    moderation.received(1, FULL);
    let pause = moderation.emptied(now).expect("a pause");
    now += pause;
    moderation.received(0, 0);
    assert_eq!(moderation.emptied(now), None, "it waits for a packet");
    // What comes after a rest begins anew.
    now += 3 * WINDOW;
    moderation.received(1, FULL);
    assert_eq!(moderation.emptied(now), None);
}

#[test]
fn a_socket_that_is_not_empty_is_read_on() {
    let moderation = Moderation::default();
    let begin = Instant::now();
    run(&moderation, begin, LONG, us(60), FULL, |_| FAR);
    assert_ne!(moderation.phase.get(), Phase::Off);
    moderation.received(64, 64 * FULL);
    moderation.interrupted();
    moderation.received(3, 3 * FULL);
    assert_eq!(moderation.emptied(begin + LONG), None);
}
