//! A lane as the client sees it: the flows that its server opens, and the datagrams that the server
//! sends.

pub(super) mod aim;
mod attempt;
#[cfg(test)]
mod attempt_tests;
pub(super) mod backoff;
mod beside;
mod ending;
mod fallback;
mod leaving;
pub(super) mod plan;
mod reach;
mod resumption;
mod scout;
mod seen;
mod session;
#[cfg(test)]
mod stampede_tests;
pub(super) mod supervisor;
mod transports;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::FlowError;
use qmux_proto::control::{Message, ServiceHealth};

use crate::client::presence;
use crate::client::servers::demand::Work;
use crate::client::servers::server::ServerState;
use crate::client::services::answers::{self, LaneAnswers, Standing};
use crate::client::shared::ClientSettings;
use crate::client::udp::ClientFlows;
use crate::client::{ClientContext, ClientCore, ClientShared};
use crate::core::event::Event;
use crate::core::memory;
use crate::core::task::spawn_or;
use crate::quic::end::LaneEnd;
use crate::quic::lane::{Lane, LaneEvents};
use crate::quic::roaming::TlsId;
pub(super) use leaving::Leaving;
use seen::FlowsSeen;
use transports::TransportNews;

const _: () = assert!(
    qmux_config::CLIENT_SERVICES_MAX <= u64::BITS as usize,
    "each service has a bit of a lane's `told_down`"
);

/// One lane to one server.
pub(super) struct ClientLane {
    pub(super) quic: Rc<Lane>,
    pub(super) udp: Rc<ClientFlows>,
    pub(super) context: Rc<ClientContext>,
    pub(super) shared: Arc<ClientShared>,
    pub(super) server: Arc<ServerState>,
    /// The settings with which the lane registers; another configuration does not change them.
    pub(super) settings: Arc<ClientSettings>,
    /// Tells the lanes of this process apart; never 0.
    pub(super) serial: u64,
    tcp_flows: Cell<usize>,
    /// Wakes the lane's session when its supervisor was retired or there was an alarm.
    pub(super) wake: Event,
    alarmed: Cell<bool>,
    /// Number of UDP packets that have come.
    datagrams: Cell<u64>,
    /// The flows that the server has opened on this lane.
    seen: RefCell<FlowsSeen>,
    /// The number of flows that the server has opened on this lane, once it has said that there
    /// will be no more.
    flows_in_all: Cell<Option<u64>>,
    /// What was found out about the lane's transports, for its session.
    news: TransportNews,
    /// The server's answers to the services that this client offers.
    pub(super) answers: Rc<LaneAnswers>,
    /// The services that the server was last told are down, one bit for each index. A service that
    /// was not mentioned counts as up.
    told_down: Cell<u64>,
}

impl ClientLane {
    pub(super) fn new(
        lane: Rc<Lane>,
        udp: Rc<ClientFlows>,
        answers: Rc<LaneAnswers>,
        core: &ClientCore,
        server: Arc<ServerState>,
        settings: Arc<ClientSettings>,
    ) -> Rc<ClientLane> {
        Rc::new(ClientLane {
            quic: lane,
            udp,
            context: Rc::clone(&core.context),
            shared: Arc::clone(&core.shared),
            server,
            settings,
            serial: core.next_serial(),
            tcp_flows: Cell::new(0),
            wake: Event::default(),
            alarmed: Cell::new(false),
            datagrams: Cell::new(0),
            seen: RefCell::default(),
            flows_in_all: Cell::new(None),
            news: TransportNews::default(),
            answers,
            told_down: Cell::new(0),
        })
    }

    /// Tells the server which of the services that it lets this client serve can be reached, as far
    /// as that is news to it. Only for registered lanes.
    pub(super) fn tell_health(&self) {
        for service in self.settings.services.all() {
            // Every server knows the service without a name from the start.
            let standing = self.answers.standing(service.index);
            let always = service.name().is_empty() && standing == Standing::Unsaid;
            let (down, told) = (1_u64 << service.index, self.told_down.get());
            let healthy = service.is_healthy();
            if healthy == (told & down == 0) || !(standing.is_accepted() || always) {
                continue;
            }
            self.told_down.set(told ^ down);
            let news = ServiceHealth {
                service: service.name().to_owned(),
                healthy,
            };
            self.quic.send_control(&Message::ServiceHealth(news));
        }
    }

    /// Takes the server's answers to the offered services.
    pub(super) fn answered(&self, standings: Vec<Standing>) {
        for (index, standing) in standings.iter().enumerate() {
            // A service that the server did not let this client serve counts as reachable when it
            // starts anew.
            if standing.is_accepted()
                && matches!(self.answers.standing(index), Standing::Refused(_))
            {
                self.told_down.set(self.told_down.get() & !(1 << index));
            }
        }
        let title = self.shared.title(&self.server);
        for news in self.server.told.news(self.settings.generation, &standings) {
            presence::say_standing(self, &title, &news);
        }
        self.answers.set(standings);
        self.tell_health();
    }

    /// The server has shown which services it knows. If it has not answered by now, it is of an
    /// older version that knows no names.
    pub(super) fn answers_are_due(&self) {
        if self.answers.is_empty() {
            self.answered(answers::standings_at_old_server(&self.settings.services));
        }
    }

    /// The server opens no further flow on this lane.
    pub(super) fn no_more_flows(&self, flows_opened: u64) {
        self.flows_in_all.set(Some(flows_opened));
    }

    /// Whether no flow is on its way to this lane. Closing it earlier may lose a visitor.
    pub(super) fn is_settled(&self) -> bool {
        let in_all = self.flows_in_all.get();
        !self.quic.is_open() || in_all.is_some_and(|flows| self.seen.borrow().all_of(flows))
    }

    /// The work that the lane has carried until now.
    fn carried(&self) -> Work {
        Work {
            visitors: self.seen.borrow().count() + self.udp.flows_opened(),
            datagrams: self.datagrams.get(),
        }
    }

    /// Raises an alarm: the server may be gone, and is to be asked.
    pub(super) fn alarm(&self) {
        self.alarmed.set(true);
        self.wake.set();
    }

    /// Takes the alarm: true once after each.
    pub(super) fn take_alarm(&self) -> bool {
        self.alarmed.take()
    }

    /// Whether the lane carries flows.
    pub(super) fn has_flows(&self) -> bool {
        self.tcp_flows.get() > 0 || self.udp.flow_count() > 0
    }

    /// Whether the lane carries no flow, and the peer has all bytes of those that it has carried.
    pub(super) fn is_idle(&self) -> bool {
        !self.has_flows() && self.quic.has_delivered(Instant::now())
    }

    /// Counts a TCP flow until the result is dropped.
    pub(super) fn count_flow(self: &Rc<Self>) -> LaneFlow {
        self.tcp_flows.set(self.tcp_flows.get() + 1);
        LaneFlow {
            lane: Rc::clone(self),
        }
    }
}

/// One TCP flow of a lane.
pub(super) struct LaneFlow {
    lane: Rc<ClientLane>,
}

impl Drop for LaneFlow {
    fn drop(&mut self) {
        let this = &self.lane;
        this.tcp_flows.set(this.tcp_flows.get() - 1);
    }
}

/// The handler of the lane's events.
pub(super) struct ClientLaneEvents(pub(super) Rc<ClientLane>);

impl LaneEvents for ClientLaneEvents {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        let ClientLaneEvents(this) = self;
        if !this.seen.borrow_mut().arrived(stream) {
            // This is late data, or the end, of a flow that was refused or has ended.
            lane.discard(stream);
            return;
        }
        if this.context.draining.get() {
            this.context.counters.tcp_flows_refused_draining.increment();
            lane.reset(stream, FlowError::Draining);
            lane.stop(stream, FlowError::Draining);
            return;
        }
        if memory::refuses_newcomers() {
            this.context.counters.visitors_refused_memory.increment();
            // The flow's service has seen nothing of it, and another client may have room for it.
            lane.reset(stream, FlowError::DialFailed);
            lane.stop(stream, FlowError::DialFailed);
            return;
        }
        let lane = Rc::clone(lane);
        spawn_or(
            crate::client::tcp::run(Rc::clone(this), stream),
            move || {
                lane.flow_panicked();
            },
        );
    }

    fn datagram(&self, _lane: &Rc<Lane>, data: &[u8]) {
        let ClientLaneEvents(this) = self;
        this.datagrams.set(this.datagrams.get() + 1);
        this.udp.datagram(data);
    }

    fn datagrams_done(&self, _lane: &Rc<Lane>) {
        self.0.udp.datagrams_done();
    }

    fn silence(&self, _lane: &Rc<Lane>, silent: bool) {
        // The cause may be this lane's own path alone, of which the lane that probes knows nothing.
        if silent {
            self.0.alarm();
        }
    }

    fn way_lost(&self, _lane: &Rc<Lane>, id: TlsId) {
        self.0.news.tls_lost(id);
        self.0.wake.set();
    }

    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {
        self.0.udp.lane_ended();
    }
}
