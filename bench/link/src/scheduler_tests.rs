//! Scenarios of one direction of a link, in its own time.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::profile::{Loss, QueueLimit};

const MBIT: u64 = 1_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn scheduler<P: Clone>(profile: Profile) -> Scheduler<P> {
    Scheduler::new(profile).unwrap()
}

/// Everything that is on the link, with the times at which it leaves.
fn drain<P: Clone>(link: &mut Scheduler<P>) -> Vec<(Duration, P)> {
    std::iter::from_fn(|| link.take_due(Duration::MAX))
        .map(|leaving| (leaving.due, leaving.packet))
        .collect()
}

#[test]
fn a_packet_takes_its_length_divided_by_the_rate_and_then_the_delay() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut link = scheduler(Profile::line(12 * MBIT, ms(20)));
    link.offer(ms(5), 1_500, 'a', &mut rng).unwrap();
    link.offer(ms(5), 750, 'b', &mut rng).unwrap();
    assert_eq!(link.next_departure(), Some(ms(26)));
    assert_eq!(link.take_due(ms(26) - Duration::from_nanos(1)), None);
    assert_eq!(link.take_due(ms(26)).unwrap().packet, 'a');
    assert_eq!(link.take_due(ms(26)), None);
    assert_eq!(link.take_due(us(26_500)).unwrap().packet, 'b');
}

#[test]
fn a_line_is_exact_for_packets_that_do_not_divide_by_its_rate() {
    // 40 bytes at 7 Gbit/s take 45.7 ns.
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        queue: QueueLimit::Bytes(10 * MBIT),
        ..Profile::line(7_000 * MBIT, Duration::ZERO)
    };
    let mut link = scheduler(profile);
    for _ in 0..70_000 {
        link.offer(Duration::ZERO, 40, (), &mut rng).unwrap();
    }
    let last = drain(&mut link).last().unwrap().0;
    assert_eq!(last, us(3_200));
}

#[test]
fn a_saturated_line_delivers_its_rate_and_drops_the_rest() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut link = scheduler(Profile::line(200 * MBIT, ms(20)));
    let mut delivered_bytes = 0;
    // 400 Mbit/s for two seconds.
    for packet in 0..66_666_u64 {
        let now = us(packet * 30);
        let _ = link.offer(now, 1_500, (), &mut rng);
        while link.take_due(now).is_some() {
            delivered_bytes += 1_500;
        }
    }
    // Minus the first 20 ms, in which nothing arrives.
    let rate = delivered_bytes as f64 * 8.0 / 1.98;
    assert!((rate / 200e6 - 1.0).abs() < 0.001, "{rate} bit/s");
    let counters = link.counters();
    let dropped = counters.dropped_by_queue_packets as f64 / 66_666.0;
    // Half of them, but for a queue of a megabyte.
    assert!((dropped - 0.49).abs() < 0.001, "{dropped}");
}

#[test]
fn a_full_queue_delays_by_its_length_and_takes_no_more() {
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        queue: QueueLimit::Bytes(15_000),
        ..Profile::line(12 * MBIT, Duration::ZERO)
    };
    let mut link = scheduler(profile);
    for packet in 0..10 {
        link.offer(Duration::ZERO, 1_500, packet, &mut rng).unwrap();
    }
    let refused = link.offer(Duration::ZERO, 1_500, 10, &mut rng);
    assert_eq!(
        refused,
        Err(Dropped {
            cause: DropCause::Queue,
            packet: 10
        })
    );
    // A packet later there is room for one.
    link.offer(ms(1), 1_500, 11, &mut rng).unwrap();
    assert_eq!(drain(&mut link).last(), Some(&(ms(11), 11)));
}

#[test]
fn a_policer_lets_a_burst_pass_at_once_and_then_the_rate() {
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        queue: QueueLimit::Policer {
            burst_bytes: 30_000,
        },
        ..Profile::line(12 * MBIT, ms(3))
    };
    let mut link = scheduler(profile);
    let at_once = (0..100)
        .filter(|_| link.offer(Duration::ZERO, 1_500, (), &mut rng).is_ok())
        .count();
    assert_eq!(at_once, 20);
    assert!(drain(&mut link).iter().all(|(due, ())| *due == ms(3)));
    // 24 Mbit/s for a second.
    let passed = (1..=2_000)
        .filter(|step| link.offer(us(step * 500), 1_500, (), &mut rng).is_ok())
        .count();
    assert_eq!(passed, 1_000);
}

#[test]
fn packets_larger_than_the_mtu_disappear_and_take_no_time() {
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        mtu: 1_400,
        ..Profile::line(8 * MBIT, Duration::ZERO)
    };
    let mut link = scheduler(profile);
    let refused = link.offer(Duration::ZERO, 1_401, 'a', &mut rng);
    assert_eq!(refused.unwrap_err().cause, DropCause::Mtu);
    link.offer(Duration::ZERO, 1_000, 'b', &mut rng).unwrap();
    assert_eq!(drain(&mut link), [(ms(1), 'b')]);
}

/// Whether each of a million packets was lost.
fn losses(loss: Loss, seed: u64) -> Vec<bool> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut link = scheduler(Profile {
        loss,
        ..Profile::default()
    });
    (0..1_000_000)
        .map(|_| {
            let lost = link.offer(Duration::ZERO, 100, (), &mut rng).is_err();
            link.take_due(Duration::ZERO);
            lost
        })
        .collect()
}

fn share(lost: &[bool]) -> f64 {
    lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64
}

#[test]
fn random_loss_takes_its_share_one_by_one() {
    for seed in 0..5 {
        let lost = losses(Loss::Random { p: 0.01 }, seed);
        // Ten thousand losses: five sigma are 5 %.
        assert!((share(&lost) / 0.01 - 1.0).abs() < 0.05, "seed {seed}");
        let pairs = lost.windows(2).filter(|pair| pair[0] && pair[1]).count();
        assert!((40..=170).contains(&pairs), "{pairs} pairs, seed {seed}");
    }
}

#[test]
fn bursts_have_their_share_and_their_length() {
    let loss = Loss::Bursts {
        p_enter: 0.001,
        p_leave: 0.1,
        p_loss: 1.0,
    };
    for seed in 0..5 {
        let lost = losses(loss, seed);
        assert!(
            (share(&lost) / loss.mean() - 1.0).abs() < 0.25,
            "seed {seed}"
        );
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let length = share(&lost) * 1e6 / bursts as f64;
        assert!((length / 10.0 - 1.0).abs() < 0.2, "{length}, seed {seed}");
    }
}

#[test]
fn a_lost_packet_has_used_the_line() {
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        loss: Loss::Random { p: 1.0 },
        queue: QueueLimit::Bytes(1_500),
        ..Profile::line(12 * MBIT, Duration::ZERO)
    };
    let mut link = scheduler(profile);
    let first = link.offer(Duration::ZERO, 1_500, (), &mut rng);
    assert_eq!(first.unwrap_err().cause, DropCause::Loss);
    let second = link.offer(Duration::ZERO, 1_500, (), &mut rng);
    assert_eq!(second.unwrap_err().cause, DropCause::Queue);
}

#[test]
fn a_reordered_packet_overtakes_those_just_before_it() {
    let mut rng = StdRng::seed_from_u64(1);
    let always = Profile {
        delay: ms(10),
        reorder: 1.0,
        reorder_ahead: ms(2),
        ..Profile::default()
    };
    let mut link = scheduler(always);
    link.offer(Duration::ZERO, 100, (), &mut rng).unwrap();
    assert_eq!(link.next_departure(), Some(ms(8)));
    // It is early, but there is nobody to overtake.
    assert_eq!(link.counters().reordered_packets, 0);
}

#[test]
fn reordering_is_counted_as_a_receiver_would() {
    let profile = Profile {
        delay: ms(10),
        reorder: 0.02,
        ..Profile::default()
    };
    for seed in 0..5 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut link = scheduler(profile.clone());
        for packet in 0..100_000_u64 {
            link.offer(us(packet * 100), 100, packet, &mut rng).unwrap();
        }
        let arrived = drain(&mut link);
        // A packet has overtaken if one that was sent before it comes after it.
        let mut earliest_to_come = u64::MAX;
        let mut overtook = 0;
        for (_, packet) in arrived.iter().rev() {
            overtook += u64::from(earliest_to_come < *packet);
            earliest_to_come = earliest_to_come.min(*packet);
        }
        let counted = link.counters().reordered_packets;
        assert!((1_800..2_200).contains(&counted), "{counted}, seed {seed}");
        // Two overtakers that follow each other within the time ahead keep their order among
        // themselves.
        assert!(overtook.abs_diff(counted) < 10, "{overtook}, {counted}");
    }
}

#[test]
fn a_duplicate_arrives_right_after_its_original() {
    let mut rng = StdRng::seed_from_u64(1);
    let profile = Profile {
        duplicate: 1.0,
        ..Profile::line(12 * MBIT, ms(1))
    };
    let mut link = scheduler(profile);
    link.offer(Duration::ZERO, 1_500, 'a', &mut rng).unwrap();
    link.offer(Duration::ZERO, 1_500, 'b', &mut rng).unwrap();
    let expected = [(ms(2), 'a'), (ms(2), 'a'), (ms(3), 'b'), (ms(3), 'b')];
    assert_eq!(drain(&mut link), expected);
    assert_eq!(link.counters().duplicated_packets, 2);
}

#[test]
fn the_same_seed_and_packets_give_the_same_link() {
    let run = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut link = scheduler(Profile {
            jitter: ms(5),
            loss: Loss::Random { p: 0.1 },
            reorder: 0.1,
            duplicate: 0.1,
            ..Profile::line(10 * MBIT, ms(10))
        });
        for packet in 0..10_000_u64 {
            let _ = link.offer(us(packet * 700), 1_000, packet, &mut rng);
        }
        drain(&mut link)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![
        Just(Loss::None),
        (0.0..=1.0).prop_map(|p| Loss::Random { p }),
        (0.0..=1.0, 0.0..=1.0, 0.0..=1.0).prop_map(|(p_enter, p_leave, p_loss)| Loss::Bursts {
            p_enter,
            p_leave,
            p_loss
        }),
    ]
}

prop_compose! {
    fn profile()(
        rate in proptest::option::of(1_000..=100_000_000_000_u64),
        policer in any::<bool>(),
        queue_bytes in 1_500..1_000_000_u64,
        delay_us in 0..200_000_u64,
        jitter_share in 0.0..=1.0,
        loss in loss(),
        reorder in 0.0..=1.0,
        duplicate in 0.0..=1.0,
    ) -> Profile {
        let queue = match rate {
            Some(_) if policer => QueueLimit::Policer { burst_bytes: queue_bytes },
            _ => QueueLimit::Bytes(queue_bytes),
        };
        Profile {
            rate_bits_per_s: rate,
            delay: us(delay_us),
            jitter: us(delay_us).mul_f64(jitter_share),
            loss,
            reorder,
            duplicate,
            queue,
            ..Profile::default()
        }
    }
}

proptest! {
    /// Whatever the link does: every packet is accounted for, none leaves before it came,
    /// departures are in order, and without reordering packets are too.
    #[test]
    fn every_packet_is_accounted_for(
        profile in profile(),
        seed in any::<u64>(),
        packets in proptest::collection::vec((0..5_000_u64, 1..2_000_usize), 1..500),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut link = scheduler(profile.clone());
        let mut now = Duration::ZERO;
        let mut left = Vec::new();
        for (number, (gap_us, bytes)) in packets.iter().enumerate() {
            now += us(*gap_us);
            let _ = link.offer(now, *bytes, (number, now), &mut rng);
            while let Some(leaving) = link.take_due(now) {
                prop_assert!(leaving.due <= now);
                left.push(leaving);
            }
            let c = link.counters();
            prop_assert_eq!(
                c.offered_packets + c.duplicated_packets,
                c.delivered_packets
                    + c.lost_packets
                    + c.dropped_by_queue_packets
                    + c.dropped_by_mtu_packets
                    + link.on_link() as u64
            );
        }
        left.extend(std::iter::from_fn(|| link.take_due(Duration::MAX)));
        prop_assert_eq!(link.counters().delivered_packets, left.len() as u64);
        prop_assert!(left.is_sorted_by_key(|leaving| leaving.due));
        for leaving in &left {
            let (_, came) = leaving.packet;
            prop_assert!(leaving.due >= came);
        }
        if profile.reorder == 0.0 {
            prop_assert!(left.is_sorted_by_key(|leaving| leaving.packet.0));
        }
    }
}
