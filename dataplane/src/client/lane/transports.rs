//! The transports of a registered lane: carries out what [`super::fallback`] decides.
//!
//! What takes time (dialling TLS, probing QUIC) runs in tasks of its own, which leave their result
//! here and wake the lane's session.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::Transport;

use super::ClientLane;
use super::fallback::{Action, Fallback, LOST_PAUSE, Signs, Why};
use super::scout;
use crate::client::servers::transport::{QuicProbe, Riding};
use crate::client::{ClientCore, carrier};
use crate::jitter::jittered;
use crate::quic::over_tls::TlsConnection;
use crate::quic::roaming::TlsId;

/// How often the result is asked for while another lane probes QUIC.
const PROBE_LOOK: Duration = Duration::from_secs(1);

/// Results that tasks have left for a lane's session.
#[derive(Default)]
pub(super) struct TransportNews {
    dialled: RefCell<Option<Result<TlsConnection, String>>>,
    probed: Cell<Option<bool>>,
    lost: RefCell<Vec<TlsId>>,
}

impl TransportNews {
    /// Notes that a TLS connection of the lane is over.
    pub(super) fn tls_lost(&self, id: TlsId) {
        self.lost.borrow_mut().push(id);
    }
}

/// The transports of one lane.
pub(super) struct Transports {
    core: Rc<ClientCore>,
    lane: Rc<ClientLane>,
    fallback: Fallback,
    /// The TLS connection that is open.
    tls: Option<TlsId>,
    /// A second TLS connection, dialled beside the first because that is silent.
    second: Option<TlsId>,
    /// The server's count of answers when the lane moved to its present transport.
    answers_before: Cell<u64>,
    /// The transport under which the lane is counted at its server.
    counted: Cell<Riding>,
    /// Whether the lane is counted: it serves, and is not left to its flows.
    counts: Cell<bool>,
}

impl Transports {
    pub(super) fn new(core: &Rc<ClientCore>, lane: &Rc<ClientLane>) -> Transports {
        let transport = carrier::transport(core, &lane.server);
        let tls = lane.quic.tls();
        let riding = if tls.is_some() {
            Riding::Tls
        } else {
            Riding::Udp
        };
        let why = core.shared.tls_alone(&lane.server);
        let why = why.unwrap_or("QUIC was not heard");
        lane.server
            .transport
            .lane_rides(riding, why, Instant::now());
        Transports {
            fallback: Fallback::new(transport, riding, Instant::now()),
            core: Rc::clone(core),
            lane: Rc::clone(lane),
            tls,
            second: None,
            answers_before: Cell::new(lane.quic.answers()),
            counted: Cell::new(riding),
            counts: Cell::new(true),
        }
    }

    /// The transports that the lane may use.
    pub(super) fn transport(&self) -> Transport {
        self.fallback.transport()
    }

    /// Whether reports of losses matter.
    pub(super) fn minds_losses(&self) -> bool {
        self.fallback.minds_losses()
    }

    /// Takes the report of one side that this many packets in a hundred are lost.
    pub(super) fn loses_most(&mut self, who: &'static str, percent: u64, now: Instant) {
        tracing::debug!(server = %self.lane.server, lane = self.lane.serial, who, percent, "most of what is sent over UDP is lost");
        self.fallback.loses_most(now);
    }

    /// The time at which [`Transports::mind`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.fallback.deadline()
    }

    /// Takes in what has happened, and does what is to be done. Nothing has been answered since
    /// `unanswered_since`.
    pub(super) fn mind(&mut self, now: Instant, unanswered_since: Option<Instant>) {
        self.take_news(now);
        while let Some(action) = self.fallback.next(now, self.signs(unanswered_since)) {
            match action {
                Action::DialTls => self.dial_tls(),
                Action::ProbeQuic(as_of) => self.probe_quic(now, as_of),
                Action::Ride(Riding::Tls, why) => self.ride_tls(now, why),
                Action::Ride(Riding::Udp, why) => self.ride_udp(why),
                Action::CloseSecond => self.close(self.second),
                Action::CloseTls => self.close(self.tls),
            }
        }
    }

    fn signs(&self, unanswered_since: Option<Instant>) -> Signs {
        Signs {
            unanswered_since,
            answered: self.fallback.waits_for_answer() && self.was_answered(),
            rtt: self.lane.quic.rtt(),
        }
    }

    /// Whether anything was answered since the lane moved to its present transport.
    fn was_answered(&self) -> bool {
        self.lane.quic.answers() != self.answers_before.get()
    }

    fn take_news(&mut self, now: Instant) {
        let news = &self.lane.news;
        for id in news.lost.take() {
            if self.second == Some(id) {
                self.second = None;
                self.fallback.lost_second();
            } else if self.tls == Some(id) {
                self.tls = self.second.take();
                self.fallback.lost_tls(now, self.was_answered());
            }
        }
        if let Some(dialled) = news.dialled.take() {
            let adopted = dialled.and_then(|connection| {
                let adopted = self.lane.quic.adopt_tls(connection);
                adopted.map_err(|error| error.to_string())
            });
            self.fallback.set_lost_pause(jittered(LOST_PAUSE));
            let is_second = self.fallback.dialled(now, adopted.is_ok());
            match adopted {
                Ok(id) if is_second => self.second = Some(id),
                Ok(id) => self.tls = Some(id),
                Err(why) => {
                    tracing::debug!(server = %self.lane.server, why, "no TLS connection for a lane");
                }
            }
        }
        if let Some(passes) = news.probed.take() {
            self.fallback.probed(now, passes);
        }
    }

    fn dial_tls(&self) {
        let (core, lane) = (Rc::clone(&self.core), Rc::clone(&self.lane));
        let failed = Rc::clone(&lane);
        crate::core::task::spawn_or(
            async move {
                let dialled = carrier::dial(&core, &lane.server).await;
                *lane.news.dialled.borrow_mut() = Some(dialled);
                lane.wake.set();
            },
            move || {
                *failed.news.dialled.borrow_mut() = Some(Err("a panic".into()));
                failed.wake.set();
            },
        );
    }

    /// Probes QUIC, one lane for all of its server.
    fn probe_quic(&mut self, now: Instant, as_of: Duration) {
        match self.lane.server.transport.begin_quic_probe(now, as_of) {
            QuicProbe::Passes => self.fallback.probed(now, true),
            // The time is that of the probe, so that all lanes ask at the same time and one probe
            // is enough.
            QuicProbe::PassesNot(found) => self.fallback.probed(found, false),
            QuicProbe::UnderWay => self.fallback.probe_later(now + jittered(PROBE_LOOK)),
            QuicProbe::Yours => {
                self.core.context.counters.quic_probes.increment();
                let (core, lane) = (Rc::clone(&self.core), Rc::clone(&self.lane));
                let failed = Rc::clone(&lane);
                crate::core::task::spawn_or(
                    async move {
                        let passes = scout::quic_passes(&core, &lane.server).await;
                        lane.server.transport.quic_probed(passes, Instant::now());
                        lane.news.probed.set(Some(passes));
                        lane.wake.set();
                    },
                    move || {
                        failed.news.probed.set(Some(false));
                        failed.wake.set();
                    },
                );
            }
        }
    }

    fn ride_tls(&mut self, now: Instant, why: Why) {
        let silent =
            (why == Why::TlsIsSilent).then(|| std::mem::replace(&mut self.tls, self.second.take()));
        self.answers_before.set(self.lane.quic.answers());
        let rides = self.tls.is_some_and(|id| self.lane.quic.ride_tls(id));
        // The old connection is not closed earlier, or the lane would have no transport in between.
        self.close(silent.flatten());
        if !rides {
            // The end of the connection is among the news that come next.
            return;
        }
        let counters = &self.core.context.counters;
        if matches!(why, Why::UdpIsSilent | Why::UdpLosesMost) {
            self.lane.server.transport.quic_was_in_vain(now);
        }
        if self.counted.get() == Riding::Udp {
            counters.lanes_moved_to_tls.increment();
        } else {
            counters.lanes_moved_to_other_tls.increment();
        }
        self.say(Riding::Tls, why);
    }

    /// Takes the lane off its server's count: it has ended, or another one serves in its place.
    pub(super) fn stop_counting(&self) {
        if self.counts.replace(false) {
            let transport = &self.lane.server.transport;
            transport.lane_leaves(self.counted.get(), "its lane ended", Instant::now());
        }
    }

    fn ride_udp(&self, why: Why) {
        self.answers_before.set(self.lane.quic.answers());
        self.lane.quic.ride_udp();
        self.core.context.counters.lanes_moved_to_udp.increment();
        self.say(Riding::Udp, why);
    }

    fn say(&self, riding: Riding, why: Why) {
        let server = &self.lane.server;
        let (before, now) = (self.counted.replace(riding), Instant::now());
        if self.counts.get() {
            server.transport.lane_leaves(before, &why.to_string(), now);
            server.transport.lane_rides(riding, &why.to_string(), now);
        }
        let Some(suppressed) = self.core.context.connect_log.pass(Instant::now()) else {
            return;
        };
        let (title, lane) = (self.core.shared.title(server), self.lane.serial);
        match riding {
            Riding::Tls if before == Riding::Tls => tracing::info!(
                server = title, lane, %why, suppressed,
                "a lane goes over another TLS connection with its flows"
            ),
            Riding::Tls => tracing::warn!(
                server = title, lane, %why, suppressed,
                "a lane goes over TLS with its flows: UDP does not get through"
            ),
            Riding::Udp => tracing::info!(
                server = title, lane, %why, suppressed,
                "a lane goes over UDP with its flows"
            ),
        }
    }

    /// Closes a connection that is not needed any more.
    fn close(&mut self, id: Option<TlsId>) {
        let Some(id) = id else { return };
        for known in [&mut self.tls, &mut self.second] {
            known.take_if(|it| *it == id);
        }
        self.lane.quic.close_tls(id);
    }
}

impl Drop for Transports {
    fn drop(&mut self) {
        self.stop_counting();
    }
}
