//! Rate limits for all networks and for each one, in a fixed amount of memory that no flood makes
//! grow.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::Network;

/// Rows of meters. A network has one meter in each row, and shares all of them with a flooding
/// network only by bad luck.
const ROWS: usize = 3;

/// Meters of a row. If ten networks flood, another one shares its meter with one of them in all
/// rows in 7 cases of a million.
const METERS: usize = 512;

/// After this time the networks are assigned to the meters anew, so that bad luck does not last.
/// Each gets its burst again, which adds a few per second to the rate.
const DEAL_AFTER: Duration = Duration::from_secs(30);

/// A rate: this many per second, and this many at once after a rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

impl Rate {
    pub(super) const fn new(per_second: u32, burst: u32) -> Rate {
        assert!(per_second > 0 && burst > 0);
        Rate { per_second, burst }
    }

    pub(super) fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

/// A token bucket, stored as the time when it is full again (the generic cell rate algorithm, ITU-T
/// I.371).
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter(Instant);

impl Meter {
    pub(super) fn new(now: Instant) -> Meter {
        Meter(now)
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.0.max(now);
        let missing = full_at.saturating_duration_since(now);
        let taken = missing <= rate.interval() * (rate.burst - 1);
        if taken {
            self.0 = full_at + rate.interval();
        }
        taken
    }
}

/// A fixed number of meters for any number of networks.
#[derive(Debug)]
pub(super) struct NetworkMeters {
    rows: [Row; ROWS],
    dealt_at: Instant,
}

#[derive(Debug)]
struct Row {
    meters: Box<[Meter]>,
    salt: u64,
}

impl NetworkMeters {
    pub(super) fn new(seed: u64, now: Instant) -> NetworkMeters {
        let row = |number: usize| Row {
            meters: vec![Meter::new(now); METERS].into(),
            salt: salted(seed, number),
        };
        NetworkMeters {
            rows: std::array::from_fn(row),
            dealt_at: now,
        }
    }

    /// Takes a token from the network's meters, if any of them has one.
    pub(super) fn take(&mut self, network: Network, rate: Rate, now: Instant) -> bool {
        if now.saturating_duration_since(self.dealt_at) >= DEAL_AFTER {
            self.deal(now);
        }
        let mut taken = false;
        for row in &mut self.rows {
            // A token is taken from each meter that has one, so that a network alone on its meters
            // gets the rate once, not three times.
            taken |= row.meter(network).take(rate, now);
        }
        taken
    }

    fn deal(&mut self, now: Instant) {
        self.dealt_at = now;
        for row in &mut self.rows {
            row.salt = salted(row.salt, row.salt);
            row.meters.fill(Meter::new(now));
        }
    }
}

impl Row {
    fn meter(&mut self, network: Network) -> &mut Meter {
        let at = salted(self.salt, network) % METERS as u64;
        &mut self.meters[usize::try_from(at).unwrap_or(0)]
    }
}

/// The rates for one network, and for all networks together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// A network that asks for no more than this is quiet.
    pub(super) quiet_network: Rate,
    /// The rate that is reserved for quiet networks.
    pub(super) quiet: Rate,
    /// The rate for any other network.
    pub(super) network: Rate,
    /// The rate for all other networks together.
    pub(super) all: Rate,
}

/// Applies [`Rates`].
#[derive(Debug)]
pub(super) struct Shares {
    rates: Rates,
    quiet_networks: NetworkMeters,
    quiet: Meter,
    networks: NetworkMeters,
    all: Meter,
}

impl Shares {
    pub(super) fn new(rates: Rates, seed: u64, now: Instant) -> Shares {
        Shares {
            rates,
            quiet_networks: NetworkMeters::new(salted(seed, "quiet"), now),
            quiet: Meter::new(now),
            networks: NetworkMeters::new(salted(seed, "networks"), now),
            all: Meter::new(now),
        }
    }

    /// Takes a token for the network, if there is one.
    pub(super) fn take(&mut self, network: Network, now: Instant) -> bool {
        let rates = self.rates;
        let quiet = self.quiet_networks.take(network, rates.quiet_network, now);
        // The network's own meter is asked first: what is refused by it must not be taken from all.
        (quiet && self.quiet.take(rates.quiet, now))
            || (self.networks.take(network, rates.network, now) && self.all.take(rates.all, now))
    }
}

/// A hash that nobody who does not know the salt can predict, so that nobody can choose whose meter
/// to share.
fn salted(salt: u64, value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, value).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::new(10, 5);

    fn taken(meter: &mut Meter, now: Instant) -> usize {
        (0..100).filter(|_| meter.take(RATE, now)).count()
    }

    #[test]
    fn a_meter_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(taken(&mut meter, start), 5);
        assert_eq!(taken(&mut meter, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&mut meter, start + Duration::from_millis(300)), 3);
        let much_later = start + Duration::from_secs(1_000);
        assert_eq!(taken(&mut meter, much_later), 5, "no more than the burst");
    }

    #[test]
    fn floods_of_some_networks_leave_something_for_quiet_ones() {
        let now = Instant::now();
        let rates = Rates {
            quiet_network: Rate::new(1, 2),
            quiet: Rate::new(100, 100),
            network: Rate::new(10, 20),
            all: Rate::new(30, 50),
        };
        let mut shares = Shares::new(rates, 7, now);
        let mut taken = |network, now| {
            let network = Network(network);
            (0..1_000).filter(|_| shares.take(network, now)).count()
        };
        let flood: usize = (0..10).map(|network| taken(network, now)).sum();
        assert_eq!(flood, 10 * 2 + 50);
        assert_eq!(taken(77, now), 2, "a quiet one");
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut meter = Meter::new(start);
        assert_eq!(taken(&mut meter, start), 5);
        assert_eq!(taken(&mut meter, start - Duration::from_secs(50)), 0);
        assert_eq!(taken(&mut meter, start), 0);
    }

    #[test]
    fn a_network_is_served_if_only_some_of_its_meters_are_empty_and_all_are_dealt_anew() {
        let start = Instant::now();
        let mut meters = NetworkMeters::new(7, start);
        let network = Network(0);
        for row in &mut meters.rows[1..] {
            while row.meter(network).take(RATE, start) {}
        }
        assert!(meters.take(network, RATE, start));
        while meters.take(network, RATE, start) {}
        assert!(meters.take(Network(1), RATE, start), "another one");
        assert!(meters.take(network, RATE, start + DEAL_AFTER));
    }
}
