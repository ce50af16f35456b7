//! Admission control: which first packets of strangers cost this core anything, and how much.
//!
//! Anybody may send an Initial packet, with any source address. What strangers can make a core do
//! is bounded in three ways, each of them per core and listener:
//!
//! - **Places.** A lane whose peer has not registered holds a place, of which there are
//!   [`PLACES_MAX`]. One network (an IPv4 /24, an IPv6 /48) may hold no more places than are still
//!   free: one network alone gets half of them, two get a third each, so that there is always a
//!   place for somebody else. When all are taken, a lane that has held one for [`STALE_AFTER`]
//!   makes room.
//! - **Handshakes per second.** The first ones begin at once. Above [`UNPROVED`] (or with a quarter
//!   of the places taken) a stranger must first prove the address, by coming back with the token of
//!   a Retry packet. Then [`PROVED`] is the limit.
//! - **Answers per second.** A stranger without a token costs one stateless answer at most, and
//!   [`ANSWERS`] bounds these.
//!
//! Both rates have a part for networks that ask for little, which flooding networks cannot use up.
//! So a flood from a hundred networks, however fast, takes nothing that others need. A flood with
//! forged addresses of all networks makes honest clients repeat their first packet (RFC 9002,
//! section 6.2) until they get an answer.
//!
//! There is no I/O, no clock and no randomness in here: time and the seed come in as arguments.

mod rate;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rate::{Meter, Rate, Rates, Shares};

/// Lanes that may be open without having registered. One costs about 40 KB.
pub(super) const PLACES_MAX: usize = 1_024;

/// The least number of places that is still enough for honest clients that come one after the
/// other.
const PLACES_MIN: usize = 16;

/// When more places than this are taken, a stranger must first prove the address: those who forge
/// theirs get no more.
pub(super) const PLACES_UNPROVED_MAX: usize = PLACES_MAX / 4;

/// When there is no place left, one is taken from a lane that has held it for this long: three
/// round trips of the slowest path that is tested, 750 ms, and a repeated packet.
const STALE_AFTER: Duration = Duration::from_secs(4);

/// Rate of handshakes that begin without a proof of the address. A full handshake costs 0.35 ms of
/// a core with a P-256 key, so 128 are 5 % of it, and the burst 0.1 s. A few clients that come back
/// together get in without the round trip of a Retry.
const UNPROVED: Rate = Rate::new(128, 256);

/// Rates of handshakes that begin with a proof of the address: 18 % of a core in all. The burst
/// lets 1,000 clients come back at once.
const PROVED: Rates = Rates {
    // A client with two lanes to each core is quiet, and so is a second client of its network.
    quiet_network: Rate::new(8, 32),
    quiet: Rate::new(256, 512),
    // The clients behind one NAT share this rate.
    network: Rate::new(128, 512),
    all: Rate::new(256, 1_024),
};

/// Rates of stateless answers: 5 to 10 % of a core at 5 to 10 µs each, most of it the system call.
const ANSWERS: Rates = Rates {
    quiet_network: Rate::new(8, 32),
    quiet: Rate::new(3_000, 3_000),
    network: Rate::new(256, 512),
    all: Rate::new(7_000, 1_000),
};

/// The verdict on the first packet of a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A lane begins, and takes a place ([`Admission::take`]).
    Begin {
        /// The lane to be given up first, if there was no place left.
        displaces: Option<u64>,
    },
    /// The sender is asked to prove the address.
    Retry,
    /// Nothing is answered; the sender may repeat the packet.
    Refuse(Refused),
}

/// Why nothing is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// All places are taken by lanes that have come lately.
    NoPlace,
    /// The sender's network holds as many places as are left for others.
    NoPlaceForNetwork,
    /// This core begins no more handshakes per second, or no more for one network.
    Handshakes,
    /// This core gives no more stateless answers per second, or no more to one network.
    Answers,
}

/// A network, whose addresses count as one: a /24 of IPv4 or a /48 of IPv6, which is what one
/// customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Network(u64);

impl Network {
    fn of(ip: IpAddr) -> Network {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Network(u64::from(u32::from(ip) >> 8)),
            // The numbers of IPv6 networks are above any number of an IPv4 network.
            IpAddr::V6(ip) => Network(1 << 63 | (ip.to_bits() >> 80) as u64),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    network: Network,
    since: Instant,
}

/// The places that strangers hold, and the rates that they have used.
#[derive(Debug)]
pub(super) struct Admission {
    places_max: usize,
    /// The places by the number of their lane. Numbers count up, so the first place is the oldest.
    places: BTreeMap<u64, Place>,
    /// Number of places of each network that has any.
    held: HashMap<Network, usize>,
    unproved: Meter,
    proved: Shares,
    answers: Shares,
}

impl Admission {
    /// A new admission. `seed` must not be guessable: it decides which networks share a meter.
    pub(super) fn new(seed: u64, now: Instant) -> Admission {
        Admission {
            places_max: PLACES_MAX,
            places: BTreeMap::new(),
            held: HashMap::new(),
            unproved: Meter::new(now),
            proved: Shares::new(PROVED, seed, now),
            answers: Shares::new(ANSWERS, seed.rotate_left(32), now),
        }
    }

    /// Sets a smaller number of places than [`PLACES_MAX`], where each takes something that is
    /// scarce.
    pub(super) fn set_places(&mut self, places_max: usize) {
        self.places_max = places_max.clamp(PLACES_MIN, PLACES_MAX);
    }

    /// Number of places that are taken.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Judges the first packet of a lane from `ip`. `proved` says whether the packet proves that
    /// its sender receives there.
    pub(super) fn judge(&mut self, ip: IpAddr, proved: bool, now: Instant) -> Verdict {
        let network = Network::of(ip);
        if !proved {
            let few = self.places.len() < PLACES_UNPROVED_MAX;
            if few && self.has_place_for(network) && self.unproved.take(UNPROVED, now) {
                return Verdict::Begin { displaces: None };
            }
            return if self.may_answer(ip, now) {
                Verdict::Retry
            } else {
                Verdict::Refuse(Refused::Answers)
            };
        }
        let displaces = if self.places.len() < self.places_max {
            if !self.has_place_for(network) {
                return Verdict::Refuse(Refused::NoPlaceForNetwork);
            }
            None
        } else {
            match self.oldest_if_stale(now) {
                Some(lane) => Some(lane),
                None => return Verdict::Refuse(Refused::NoPlace),
            }
        };
        if self.proved.take(network, now) {
            Verdict::Begin { displaces }
        } else {
            Verdict::Refuse(Refused::Handshakes)
        }
    }

    /// Whether one more stateless answer may go to `ip`; if so, it is counted as given.
    pub(super) fn may_answer(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.answers.take(Network::of(ip), now)
    }

    /// Takes a place for the lane of this number.
    pub(super) fn take(&mut self, lane: u64, ip: IpAddr, now: Instant) {
        let network = Network::of(ip);
        let place = Place {
            network,
            since: now,
        };
        let earlier = self.places.insert(lane, place);
        debug_assert!(earlier.is_none(), "a lane holds one place");
        *self.held.entry(network).or_default() += 1;
    }

    /// Gives back the place of a lane that is registered, refused or gone.
    pub(super) fn give_back(&mut self, lane: u64) {
        let Some(place) = self.places.remove(&lane) else {
            return;
        };
        if let Some(held) = self.held.get_mut(&place.network) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&place.network);
            }
        }
    }

    /// Whether a network may hold one more place: if it then has no more than are left for others.
    fn has_place_for(&self, network: Network) -> bool {
        let held = self.held.get(&network).copied().unwrap_or(0);
        held < self.places_max.saturating_sub(self.places.len())
    }

    fn oldest_if_stale(&self, now: Instant) -> Option<u64> {
        let (lane, place) = self.places.first_key_value()?;
        (now.saturating_duration_since(place.since) >= STALE_AFTER).then_some(*lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(network: u8, host: u8) -> IpAddr {
        IpAddr::from([192, 0, network, host])
    }

    const BEGIN: Verdict = Verdict::Begin { displaces: None };

    fn begin(admission: &mut Admission, lane: u64, ip: IpAddr, proved: bool, now: Instant) {
        assert_eq!(admission.judge(ip, proved, now), BEGIN, "lane {lane}");
        admission.take(lane, ip, now);
    }

    #[test]
    fn above_the_rate_strangers_must_prove_their_address_although_no_lane_is_open() {
        let now = Instant::now();
        let mut admission = Admission::new(1, now);
        for _ in 0..UNPROVED.burst {
            // Garbage gives its place back at once.
            begin(&mut admission, 1, ip(1, 1), false, now);
            admission.give_back(1);
        }
        assert_eq!(admission.judge(ip(1, 1), false, now), Verdict::Retry);
        assert_eq!(admission.judge(ip(1, 1), true, now), BEGIN);
        let later = now + Duration::from_secs(1);
        assert_eq!(admission.judge(ip(1, 1), false, later), BEGIN);
    }

    #[test]
    fn one_network_gets_half_of_the_places_at_most_and_others_get_in() {
        let mut now = Instant::now();
        let mut admission = Admission::new(1, now);
        let mut lane = 0;
        loop {
            now += Duration::from_millis(10);
            let host = u8::try_from(lane % 250).expect("small");
            match admission.judge(ip(1, host), true, now) {
                BEGIN => admission.take(lane, ip(1, host), now),
                verdict => {
                    assert_eq!(verdict, Verdict::Refuse(Refused::NoPlaceForNetwork));
                    break;
                }
            }
            lane += 1;
        }
        assert_eq!(admission.places(), PLACES_MAX / 2);
        begin(&mut admission, lane, ip(2, 1), true, now);
    }

    #[test]
    fn with_fewer_places_one_network_gets_half_of_them_too() {
        let now = Instant::now();
        let mut admission = Admission::new(1, now);
        admission.set_places(40);
        let mut lane = 0;
        while admission.judge(ip(1, 1), true, now) == BEGIN {
            admission.take(lane, ip(1, 1), now);
            lane += 1;
        }
        assert_eq!(admission.places(), 20);
        begin(&mut admission, lane, ip(2, 1), true, now);
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_that_is_stale_makes_room() {
        let start = Instant::now();
        let mut now = start;
        let mut admission = Admission::new(1, start);
        for lane in 0..PLACES_MAX as u64 {
            let network = IpAddr::from([10, (lane >> 8) as u8, lane as u8, 1]);
            admission.take(lane, network, start);
        }
        let refused = Verdict::Refuse(Refused::NoPlace);
        assert_eq!(admission.judge(ip(1, 1), true, now), refused);
        now += STALE_AFTER;
        let displaces = Verdict::Begin { displaces: Some(0) };
        assert_eq!(admission.judge(ip(1, 1), true, now), displaces);
    }

    #[test]
    fn answers_to_one_network_are_bounded_and_do_not_use_up_those_to_others() {
        let now = Instant::now();
        let mut admission = Admission::new(1, now);
        let answered = (0..100_000)
            .filter(|_| admission.may_answer(ip(1, 1), now))
            .count();
        let most = ANSWERS.network.burst + ANSWERS.quiet_network.burst;
        assert_eq!(answered, most as usize);
        // Many networks that flood use up what is not reserved for others.
        for network in 0..64 {
            while admission.may_answer(IpAddr::from([10, 0, network, 1]), now) {}
        }
        assert!(admission.may_answer(ip(2, 1), now));
    }

    #[test]
    fn networks_are_what_one_customer_has() {
        let network = |text: &str| Network::of(text.parse().expect("an address"));
        assert_eq!(network("192.0.2.1"), network("192.0.2.250"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:ffff::9"));
        assert_ne!(network("2001:db8:1::"), network("2001:db8:2::"));
    }
}
