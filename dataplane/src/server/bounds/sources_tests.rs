use super::*;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn sources(change: impl FnOnce(&mut SourceLimits)) -> Sources {
    let mut limits = SourceLimits {
        sources_max: 1_000,
        ..SourceLimits::default()
    };
    change(&mut limits);
    Sources::new(limits)
}

#[test]
fn a_source_has_as_many_at_a_time_as_it_may_and_others_have_their_own() {
    let mut it = sources(|limits| {
        limits.visitors_max = 2;
    });
    let now = Instant::now();
    for _ in 0..2 {
        assert_eq!(it.open(ip(1), now).map(drop), Ok(()));
    }
    let refused = Err(Refusal::VisitorsOfSource);
    assert_eq!(it.open(ip(1), now).map(drop), refused);
    assert_eq!(it.open(ip(2), now).map(drop), Ok(()));
    it.close(ip(1), now);
    assert_eq!(it.open(ip(1), now).map(drop), Ok(()));
    assert_eq!(it.open(ip(1), now).map(drop), refused);
}

#[test]
fn a_rate_lets_its_burst_in_at_once_and_then_so_many_a_second() {
    for rate in [1, 3, 7, 1_000] {
        let mut it = sources(|limits| limits.visitors_per_second = rate);
        let mut now = Instant::now();
        let mut come = |now, visits: u32| {
            let let_in = |_: &u32| {
                let admitted = it.open(ip(1), now).is_ok();
                if admitted {
                    it.close(ip(1), now);
                }
                admitted
            };
            u32::try_from((0..visits).filter(let_in).count()).expect("few")
        };
        assert_eq!(come(now, 2 * rate), rate, "the burst of {rate}");
        let mut admitted = 0;
        for _ in 0..100 {
            now += Duration::from_millis(100);
            admitted += come(now, rate);
        }
        let expected = 10 * rate;
        assert!(
            (expected - 1..=expected + 1).contains(&admitted),
            "{admitted} in 10 s at {rate}/s"
        );
    }
}

#[test]
fn a_source_that_has_not_come_for_long_has_saved_up_no_more_than_its_burst() {
    let mut it = sources(|limits| {
        limits.visitors_max = 100;
        limits.visitors_per_second = 3;
    });
    let now = Instant::now();
    // This one stays, so that its source is remembered.
    assert_eq!(it.open(ip(1), now).map(drop), Ok(()));
    let later = now + Duration::from_secs(3_600);
    let admitted = (0..10).filter(|_| it.open(ip(1), later).is_ok());
    assert_eq!(admitted.count(), 3);
}

#[test]
fn a_refused_visitor_takes_nothing_of_the_rate() {
    let mut it = sources(|limits| {
        limits.visitors_max = 1;
        limits.visitors_per_second = 2;
    });
    let now = Instant::now();
    assert_eq!(it.open(ip(1), now).map(drop), Ok(()));
    for _ in 0..10 {
        let refused = Err(Refusal::VisitorsOfSource);
        assert_eq!(it.open(ip(1), now).map(drop), refused);
    }
    it.close(ip(1), now);
    assert_eq!(it.open(ip(1), now).map(drop), Ok(()));
    it.close(ip(1), now);
    let refused = Err(Refusal::RateOfSource);
    assert_eq!(it.open(ip(1), now).map(drop), refused);
}

#[test]
fn idle_sources_are_forgotten_and_those_that_have_something_never() {
    let mut it = sources(|limits| {
        limits.visitors_max = 1;
        limits.visitors_per_second = 1;
        limits.sources_max = 3;
    });
    let now = Instant::now();
    for last in 1..=3 {
        assert_eq!(it.open(ip(last), now).map(drop), Ok(()));
    }
    for last in 1..=2 {
        it.close(ip(last), now);
    }
    let full = Err(Refusal::SourcesFull);
    assert_eq!(
        it.open(ip(4), now).map(drop),
        full,
        "their rates have not recovered"
    );
    let later = now + Duration::from_secs(1);
    assert_eq!(it.open(ip(4), later).map(drop), Ok(()));
    assert_eq!(it.known.len(), 2, "the one that has something, and the new");
    let refused = Err(Refusal::VisitorsOfSource);
    assert_eq!(it.open(ip(3), later).map(drop), refused);
    it.close(ip(3), later);
    assert_eq!(it.known.len(), 1, "idle ones go when they end");
}

#[test]
fn what_was_opened_and_closed_leaves_nothing_behind() {
    let mut it = sources(|limits| {
        limits.visitors_max = 3;
    });
    let now = Instant::now();
    let mut open = Vec::new();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..10_000 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let source = ip(u8::try_from(seed % 5).expect("small"));
        if seed & 128 > 0 {
            if it.open(source, now).is_ok() {
                open.push(source);
            }
        } else if let Some(source) = open.pop() {
            it.close(source, now);
        }
        assert!(open.iter().filter(|it| **it == source).count() <= 3);
    }
    for source in open {
        it.close(source, now);
    }
    assert!(it.known.is_empty());
}
