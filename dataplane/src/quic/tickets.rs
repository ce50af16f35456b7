//! Session ticket keys of the server: shared by all cores of the process; either rotated, or read
//! from a file that several servers share.
//!
//! A [`KeyRing`] decides which keys there are; it knows no clock and no randomness of its own. The
//! cores read an immutable [`KeySet`] that is swapped on change, so a handshake takes no lock. One
//! task of the first core keeps the set up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use boring::ssl::SslContextBuilder;
use qmux_config::{FileOrText, ServerTls, TICKET_KEY_NAME_BYTES, TicketKey, read_ticket_keys};

use crate::core::counters::CoreCounters;
use crate::sys::tls::{self, TicketKeySource};

/// How often a key file is checked for a change, or more often if the rotation interval is shorter.
const FILE_CHECK: Duration = Duration::from_secs(60);

/// The keys at one moment: the first one seals tickets, and all of them open tickets.
#[derive(Debug)]
pub(crate) struct KeySet(Vec<TicketKey>);

impl KeySet {
    /// The key with this name, and whether another one seals tickets now.
    fn find(&self, name: &[u8; TICKET_KEY_NAME_BYTES]) -> Option<(&TicketKey, bool)> {
        let at = self.0.iter().position(|key| key.name() == *name)?;
        Some((&self.0[at], at > 0))
    }
}

/// Keys that are drawn here and expire.
///
/// Time is cut into slots of one rotation interval. A key is drawn in a slot, seals tickets during
/// that slot, and opens them for `overlap` slots more. A tick that comes late (because the process
/// was stopped) never makes a key live longer.
#[derive(Debug)]
pub(crate) struct KeyRing {
    /// The keys, newest first, each with the start of its slot; never empty.
    keys: Vec<(Instant, TicketKey)>,
    /// The rotation interval; zero if keys are not rotated.
    interval: Duration,
    overlap: u32,
}

impl KeyRing {
    /// A ring with one key, whose slot starts now.
    pub(crate) fn new(now: Instant, interval: Duration, overlap: u8, key: TicketKey) -> KeyRing {
        KeyRing {
            keys: vec![(now, key)],
            interval,
            overlap: overlap.into(),
        }
    }

    /// Rotates the keys if it is time to, with the key that `draw` returns. Returns whether
    /// anything changed.
    pub(crate) fn tick(&mut self, now: Instant, draw: impl FnOnce() -> Option<TicketKey>) -> bool {
        let Some(due) = self.next_tick() else {
            return false;
        };
        if now < due {
            return false;
        }
        let (newest, _) = self.keys[0];
        let slots = now.duration_since(newest).as_nanos() / self.interval.as_nanos().max(1);
        let slot = newest + self.interval * u32::try_from(slots).unwrap_or(u32::MAX);
        // If no key can be drawn, the newest one goes on sealing. That is better than no tickets,
        // and the next tick tries again.
        let drawn = draw();
        let count = self.keys.len();
        let rotated = drawn.is_some();
        if let Some(key) = drawn {
            self.keys.insert(0, (slot, key));
        }
        let (interval, overlap) = (self.interval, self.overlap);
        let mut newest = true;
        self.keys.retain(|(drawn, _)| {
            std::mem::take(&mut newest) || *drawn + interval * (overlap + 1) > slot
        });
        rotated || self.keys.len() != count
    }

    /// The time at which the next tick is due; `None` if never.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        (!self.interval.is_zero()).then(|| self.keys[0].0 + self.interval)
    }

    fn set(&self) -> KeySet {
        KeySet(self.keys.iter().map(|(_, key)| key.clone()).collect())
    }
}

/// The origin of the keys.
#[derive(Debug)]
enum Origin {
    Drawn(KeyRing),
    /// The configuration file contains the keys; they stay as they are.
    Text,
    File {
        path: PathBuf,
        check: Duration,
        /// The fault that the last look at the file found, so that it is logged once.
        wrong: Option<String>,
    },
}

/// The ticket keys of this process.
#[derive(Debug)]
pub(crate) struct TicketKeys {
    current: ArcSwap<KeySet>,
}

/// Changes [`TicketKeys`]; there is only one keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    keys: Arc<TicketKeys>,
    origin: Origin,
}

impl TicketKeys {
    /// Draws the first key, or reads the file.
    ///
    /// # Errors
    /// A text for the log.
    pub(crate) fn start(tls: &ServerTls) -> Result<(Arc<TicketKeys>, Keeper), String> {
        let interval = tls.session_ticket_encryption_key_rotation_interval;
        let (origin, set) = match &tls.session_ticket_encryption_key {
            Some(FileOrText::File(path)) => {
                let keys = read_ticket_keys(path)
                    .map_err(|error| format!("ticket keys: {} {error}", path.display()))?;
                let check = match interval {
                    Duration::ZERO => FILE_CHECK,
                    interval => interval.min(FILE_CHECK),
                };
                let origin = Origin::File {
                    path: path.clone(),
                    check,
                    wrong: None,
                };
                (origin, KeySet(keys))
            }
            Some(text) => {
                let keys = text
                    .read_ticket_keys()
                    .map_err(|error| format!("ticket keys: {text} {error}"))?;
                (Origin::Text, KeySet(keys))
            }
            None => {
                let key = TicketKey::draw().ok_or("ticket keys: the system gives no randomness")?;
                let overlap = tls.session_ticket_encryption_key_rotation_overlap;
                let ring = KeyRing::new(Instant::now(), interval, overlap, key);
                let set = ring.set();
                (Origin::Drawn(ring), set)
            }
        };
        let keys = Arc::new(TicketKeys {
            current: ArcSwap::from_pointee(set),
        });
        let keeper = Keeper {
            keys: Arc::clone(&keys),
            origin,
        };
        Ok((keys, keeper))
    }

    /// Makes a server's context seal and open tickets with these keys. The context must stay on the
    /// core that owns the counters.
    pub(crate) fn serve(self: &Arc<Self>, context: &mut SslContextBuilder, of: &Arc<CoreCounters>) {
        tls::set_ticket_keys(context, self.source(of));
    }

    fn source(self: &Arc<Self>, counters: &Arc<CoreCounters>) -> Source {
        Source {
            keys: Arc::clone(self),
            counters: Arc::clone(counters),
        }
    }
}

struct Source {
    keys: Arc<TicketKeys>,
    counters: Arc<CoreCounters>,
}

impl TicketKeySource for Source {
    fn seal(&self) -> TicketKey {
        self.counters.tickets_issued.increment();
        self.keys.current.load().0[0].clone()
    }

    fn open(&self, name: &[u8; TICKET_KEY_NAME_BYTES]) -> Option<(TicketKey, bool)> {
        let set = self.keys.current.load();
        let found = set.find(name).map(|(key, old)| (key.clone(), old));
        if found.is_none() {
            self.counters.tickets_refused.increment();
        }
        found
    }
}

impl Keeper {
    /// Keeps the keys up to date for as long as the core runs.
    pub(crate) async fn run(mut self, counters: Arc<CoreCounters>) {
        loop {
            let wake = match &self.origin {
                Origin::Drawn(ring) => ring.next_tick(),
                Origin::File { check, .. } => Some(Instant::now() + *check),
                Origin::Text => None,
            };
            let Some(wake) = wake else { return };
            // There is always a pause: a system without randomness must not keep the core busy.
            let wake = wake.max(Instant::now() + Duration::from_millis(100));
            crate::core::time::sleep_until(wake).await;
            self.tick(&counters);
        }
    }

    fn tick(&mut self, counters: &CoreCounters) {
        match &mut self.origin {
            Origin::Drawn(ring) => {
                if ring.tick(Instant::now(), TicketKey::draw) {
                    self.keys.current.store(Arc::new(ring.set()));
                    counters.ticket_keys_rotated.increment();
                    tracing::info!(keys = ring.keys.len(), "session ticket key rotated");
                }
            }
            Origin::Text => {}
            Origin::File { path, wrong, .. } => {
                let now_wrong = look(&self.keys, path, counters).err();
                if let Some(error) = &now_wrong {
                    counters.ticket_key_files_refused.increment();
                    if wrong.as_ref() != Some(error) {
                        tracing::warn!(file = %path.display(), error, "session ticket keys cannot be read again; going on with those of before");
                    }
                }
                *wrong = now_wrong;
            }
        }
    }
}

/// Takes the keys of a file if they have changed. The file is small, and local like the
/// certificates, which cores read as well.
fn look(keys: &TicketKeys, path: &Path, counters: &CoreCounters) -> Result<(), String> {
    let read = read_ticket_keys(path)?;
    if read != keys.current.load().0 {
        let count = read.len();
        keys.current.store(Arc::new(KeySet(read)));
        counters.ticket_keys_rotated.increment();
        tracing::info!(file = %path.display(), keys = count, "session ticket keys read again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn key(number: u64) -> TicketKey {
        let mut bytes = vec![0; TicketKey::BYTES];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        TicketKey::new(bytes).expect("a key")
    }

    #[test]
    fn a_ring_without_rotation_keeps_its_key() {
        let start = Instant::now();
        let mut ring = KeyRing::new(start, Duration::ZERO, 2, key(1));
        assert_eq!(ring.next_tick(), None);
        assert!(!ring.tick(start + Duration::from_secs(1 << 30), || Some(key(2))));
        assert_eq!(ring.set().0, [key(1)]);
    }

    #[test]
    fn without_overlap_only_the_sealing_key_opens() {
        let (start, interval) = (Instant::now(), Duration::from_secs(10));
        let mut ring = KeyRing::new(start, interval, 0, key(1));
        assert!(!ring.tick(start + interval - Duration::from_nanos(1), || Some(key(2))));
        assert!(ring.tick(start + interval, || Some(key(2))));
        assert_eq!(ring.set().0, [key(2)]);
    }

    #[test]
    fn without_randomness_the_key_stays_and_is_replaced_later() {
        let (start, interval) = (Instant::now(), Duration::from_secs(10));
        let mut ring = KeyRing::new(start, interval, 1, key(1));
        assert!(!ring.tick(start + interval * 5, || None));
        assert_eq!(ring.set().0, [key(1)]);
        assert!(ring.tick(start + interval * 5, || Some(key(2))));
        assert_eq!(ring.set().0, [key(2)], "the first one is too old by now");
    }

    /// Thousands of steps: handshakes that seal or open tickets, and ticks that are on time or
    /// late.
    #[test]
    fn tickets_open_as_long_as_they_should_and_never_longer() {
        for seed in 1..=200 {
            let mut random = StdRng::seed_from_u64(seed);
            let interval = Duration::from_millis(1 + random.random_range(0..5_000));
            let overlap = random.random_range(0..5u8);
            let punctual = random.random_range(0..2) == 0;
            let start = Instant::now();
            let mut now = start;
            let mut drawn = 1;
            let mut ring = KeyRing::new(start, interval, overlap, key(drawn));
            let mut tickets: Vec<(Instant, [u8; TICKET_KEY_NAME_BYTES])> = Vec::new();
            for step in 0..500 {
                let place = format!("seed {seed}, step {step}");
                let pause = interval.mul_f64(f64::from(random.random_range(0..1_000)) / 1_500.0);
                now += if random.random_range(0..50) == 0 {
                    interval * 7
                } else {
                    pause
                };
                if punctual || random.random_range(0..2) == 0 {
                    ring.tick(now, || {
                        drawn += 1;
                        Some(key(drawn))
                    });
                    let (slot, _) = ring.keys[0];
                    assert!(
                        slot <= now && now < slot + interval,
                        "{place}: the newest key is old"
                    );
                    for (slot, _) in &ring.keys {
                        let life = interval * (u32::from(overlap) + 1);
                        assert!(now < *slot + life, "{place}: a key outlives its time");
                    }
                    assert!(
                        ring.keys.len() <= usize::from(overlap) + 1,
                        "{place}: too many keys"
                    );
                }
                let set = ring.set();
                if random.random_range(0..2) == 0 {
                    tickets.push((now, set.0[0].name()));
                }
                for (sealed, name) in &tickets {
                    let age = now - *sealed;
                    let opens = set.find(name).is_some();
                    if punctual && age <= interval * u32::from(overlap) {
                        assert!(opens, "{place}: a ticket of {age:?} does not open");
                    }
                    if punctual && age >= interval * (u32::from(overlap) + 1) {
                        assert!(!opens, "{place}: a ticket of {age:?} still opens");
                    }
                }
                assert_eq!(set.find(&set.0[0].name()).map(|(_, old)| old), Some(false));
            }
        }
    }

    #[test]
    fn a_key_file_is_read_again_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys");
        let write = |keys: &[TicketKey]| {
            let text: String = keys.iter().map(|key| key.to_line() + "\n").collect();
            std::fs::write(&path, text).expect("written");
        };
        write(&[key(1)]);
        let tls = ServerTls {
            server_cert: PathBuf::new().into(),
            server_key: PathBuf::new().into(),
            session_ticket_encryption_key_rotation_interval: Duration::ZERO,
            session_ticket_encryption_key_rotation_overlap: 0,
            session_ticket_encryption_key: Some(path.clone().into()),
        };
        let (keys, mut keeper) = TicketKeys::start(&tls).expect("keys");
        let counters = CoreCounters::default();
        write(&[key(2), key(1)]);
        keeper.tick(&counters);
        let opens = |number| {
            keys.current
                .load()
                .find(&key(number).name())
                .map(|(_, old)| old)
        };
        assert_eq!(
            (opens(2), opens(1), opens(3)),
            (Some(false), Some(true), None)
        );
        keeper.tick(&counters);
        assert_eq!(counters.ticket_keys_rotated.get(), 1, "nothing was new");
        std::fs::write(&path, "broken").expect("written");
        keeper.tick(&counters);
        assert_eq!(counters.ticket_key_files_refused.get(), 1);
        assert_eq!(opens(2), Some(false), "the keys of before stay");
        write(&[key(3)]);
        keeper.tick(&counters);
        assert_eq!((opens(3), opens(2)), (Some(false), None));
    }

    /// Measured beside those in `costs`. What sealing and opening themselves cost is part of a
    /// handshake.
    #[test]
    #[ignore = "measures"]
    fn what_a_ticket_key_costs() {
        let keys = Arc::new(TicketKeys {
            current: ArcSwap::from_pointee(KeySet((0..3).map(key).collect())),
        });
        let source = |_| keys.source(&Arc::default());
        crate::costs::print_on_both("the key that seals a ticket", source, |source| {
            std::hint::black_box(source.seal());
        });
        let name = key(2).name();
        crate::costs::print_on_both(
            "the key of a ticket, the third of three",
            source,
            |source| {
                std::hint::black_box(source.open(&name));
            },
        );
    }
}
