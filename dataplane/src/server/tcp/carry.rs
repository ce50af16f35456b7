//! Carrying a TCP visitor's flow: to a client, and to another one if the first refuses it.

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::{FlowError, OpenHeader, Protocol};

use super::opening::{Opened, Opening, Sent};
use super::visitor::Visitor;
use crate::buffer::StreamBuf;
use crate::core::task::spawn_or;
use crate::core::{FlowCount, OneFlow};
use crate::flow::tcp::{self, TcpFlow, TcpFlowEnd};
use crate::quic::lane::StreamWaiters;
use crate::server::access_log::{End, FinishedFlow};
use crate::server::bounds::Refusal;
use crate::server::door::lane::{LaneUse, ServerLane};
use crate::server::entrance::Entrance;
use crate::server::mail::ServerMail;
use crate::server::pool::route::{self, Route};
use crate::server::pool::service::FlowTicket;
use crate::sys::tcp::TcpSocket;

/// A stream on which a flow has begun with its Open header.
struct BegunStream {
    lane: LaneUse,
    stream: u64,
    waiters: Rc<StreamWaiters>,
    /// The part of the header that the stream has not taken.
    header: Option<StreamBuf>,
}

/// Where a refused flow goes on.
enum Again {
    /// The flow goes on through another lane of this core.
    Here(Box<(Box<Visitor>, BegunStream, FlowTicket)>),
    /// The flow goes on at another core, which has the visitor now.
    Elsewhere,
    /// Nowhere, because no client can take it.
    Nowhere(Box<Visitor>),
}

/// Tells the choice of clients what the beginning of a flow shows about the service. Returns true
/// if it shows nothing yet.
fn judge_beginning(first: &tcp::Begun, ticket: &FlowTicket) -> bool {
    if !first.early.is_empty() {
        ticket.answered(Instant::now());
    } else if first.early_fin && !first.ended {
        ticket.ended_early(Instant::now());
    }
    first.early.is_empty() && !first.early_fin
}

/// Tells the choice of clients what the end of a flow shows whose service had sent nothing at
/// first.
fn judge_end(ended: tcp::Ended, ticket: &FlowTicket) {
    if ended.bytes_out > 0 {
        ticket.answered(Instant::now());
    } else if ended.how == TcpFlowEnd::Reset(FlowError::ServiceReset) {
        ticket.ended_early(Instant::now());
    }
}

impl Entrance {
    /// Handles a visitor for whom another core has chosen a client that has a lane here.
    pub(crate) fn visitor_from_other_core(
        self: &Rc<Self>,
        stream: TcpStream,
        visitor: Box<Visitor>,
        ticket: FlowTicket,
    ) {
        let lane = self.local_lane(ticket.client().number);
        if let Some(begun) = lane.and_then(|lane| self.begin(&lane, &visitor)) {
            if ticket.client().lanes_on(visitor.chosen_by) == 0 {
                begun.lane.visitor_handed_over();
            }
            return self.serve(stream, visitor, begun, ticket);
        }
        // The lane has just ended, or takes no more now. The client may have another one with room.
        let next = ticket
            .client()
            .core_with_lane_between(self.core(), visitor.chosen_by);
        let (stream, visitor) = match next {
            Some(core) => match self.hand_over(core, stream, visitor, ticket) {
                Ok(()) => return,
                Err(back) => back,
            },
            None => (stream, visitor),
        };
        self.send_to_a_client(stream, visitor);
    }

    pub(super) fn send_to_a_client(
        self: &Rc<Self>,
        mut stream: TcpStream,
        mut visitor: Box<Visitor>,
    ) {
        loop {
            match self.way(&mut visitor) {
                Some(Route::Here(begun, ticket)) => {
                    return self.serve(stream, visitor, begun, ticket);
                }
                Some(Route::Elsewhere(core, ticket)) => {
                    match self.hand_over(core, stream, visitor, ticket) {
                        Ok(()) => return,
                        Err(back) => (stream, visitor) = back,
                    }
                }
                None => return self.refuse(stream, visitor.addr, Refusal::NoClient),
            }
        }
    }

    fn way(&self, visitor: &mut Visitor) -> Option<Route<BegunStream>> {
        let mut tried = visitor.tried;
        let way = route::find(
            self.pool(),
            Protocol::Tcp,
            self.core(),
            &mut tried,
            Instant::now(),
            |client| self.local_lane(client),
            |lane| self.begin(lane, visitor),
        );
        visitor.tried = tried;
        visitor.chosen_by = self.core();
        way
    }

    /// Hands the visitor over to another core. Returns it if that core's mailbox is full.
    fn hand_over(
        &self,
        core: usize,
        stream: TcpStream,
        mut visitor: Box<Visitor>,
        ticket: FlowTicket,
    ) -> Result<(), (TcpStream, Box<Visitor>)> {
        self.counters().visitors_handed_over.increment();
        visitor
            .under_way
            .get_or_insert_with(|| OneFlow::new(&self.context().cluster));
        let mail = ServerMail::Visitor {
            entrance: self.id(),
            stream,
            visitor,
            ticket,
        };
        match self.context().post.send(core, mail) {
            Err(ServerMail::Visitor {
                stream, visitor, ..
            }) => {
                self.counters().visitors_handover_dropped.increment();
                Err((stream, visitor))
            }
            _ => Ok(()),
        }
    }

    /// Opens a stream and gives it the Open header, which leaves with the flow's first bytes if
    /// these are there when its task begins. `None` if the lane takes no more.
    fn begin(&self, lane: &Rc<ServerLane>, visitor: &Visitor) -> Option<BegunStream> {
        let stream = lane.quic.open_stream()?;
        let header = OpenHeader {
            flow_id: self.door().next_flow_id(),
            protocol: Protocol::Tcp,
            service: self.service().name.clone(),
            visitor: visitor.addr,
            traffic: visitor.traffic,
            opened_at_us: visitor.accepted_at_us,
        };
        let mut encoded = Vec::with_capacity(qmux_proto::open::OPEN_HEADER_BYTES_MAX);
        header.encode(&mut encoded);
        let waiters = lane.quic.attach(stream);
        // This is written at once, not in the flow's task: the stream exists for QUIC only when
        // something was written to it, and until then its place could be given away again.
        let header = StreamBuf::copied(&encoded);
        let Ok(header) = lane.quic.write_unflushed(stream, header, false, &waiters) else {
            lane.quic.detach(stream);
            return None;
        };
        lane.quic.asked(Instant::now());
        self.counters().tcp_flows_opened.increment();
        Some(BegunStream {
            lane: LaneUse::new(lane),
            stream,
            waiters,
            header,
        })
    }

    fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        mut visitor: Box<Visitor>,
        begun: BegunStream,
        ticket: FlowTicket,
    ) {
        let socket = match TcpSocket::adopt(stream) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(visitor = %visitor.addr, %error, "visitor lost before its flow began");
                self.end(&begun, FlowError::VisitorReset);
                return;
            }
        };
        tracing::debug!(visitor = %visitor.addr, client = begun.lane.client_id(), "flow opened");
        let count = FlowCount::new(&self.context().core);
        visitor.under_way = None; // Not earlier: in between the visitor would not be counted.
        let (this, cleans_up) = (Rc::clone(self), Rc::clone(self));
        let task = async move {
            this.carry(socket, visitor, begun, ticket).await;
            drop(count);
        };
        spawn_or(task, move || cleans_up.door().flow_panicked());
    }

    /// Carries a flow to its end, through as many clients as it needs.
    async fn carry(
        self: Rc<Self>,
        socket: TcpSocket,
        mut visitor: Box<Visitor>,
        mut begun: BegunStream,
        mut ticket: FlowTicket,
    ) {
        let mut sent = Sent::new(
            self.held(),
            &std::mem::take(&mut visitor.sent),
            visitor.ended,
        );
        let watch = self.context().flows.register(self.stall_timeout());
        let watch = watch.with_idle_timeout(self.service().gate.idle_timeout());
        watch.belongs_to(self.id().0);
        let arrived = Instant::now();
        let histograms = &self.context().histograms;
        loop {
            let mut tried = visitor.tried;
            tried.unanswered(ticket.client().number);
            watch.rides(begun.lane.quic.key(), begun.stream);
            let opening = Opening {
                socket: &socket,
                lane: &begun.lane.quic,
                stream: begun.stream,
                waiters: &begun.waiters,
                began: Instant::now(),
                better: &|| self.pool().has_better(&tried),
                watch: &watch,
                counters: self.counters(),
                service: self.service_counters(),
            };
            // This is on the heap because it is large, and over long before the flow is.
            let opened = Box::pin(opening.run(begun.header.take(), &mut sent)).await;
            let end = match opened {
                Opened::Flow(first) => {
                    if !first.early.is_empty() {
                        histograms
                            .first_byte_seconds
                            .observe_time(arrived.elapsed());
                    }
                    let undecided = judge_beginning(&first, &ticket);
                    drop(sent);
                    let flow = TcpFlow {
                        socket,
                        lane: Rc::clone(&begun.lane.quic),
                        stream: begun.stream,
                        waiters: begun.waiters,
                        reset_reason: FlowError::VisitorReset,
                        watch,
                        counters: Arc::clone(&self.context().counters),
                        service: Some(Arc::clone(self.service_counters())),
                        bandwidth: self.service().gate.bandwidth(arrived),
                    };
                    let ended = tcp::run(flow, first).await;
                    histograms.tcp_flow_seconds.observe_time(arrived.elapsed());
                    if undecided {
                        judge_end(ended, &ticket);
                    }
                    self.log_end(ended, &visitor, &begun.lane);
                    drop(ticket);
                    return;
                }
                Opened::Reset(reason) => {
                    if reason == FlowError::ServiceReset {
                        ticket.ended_early(Instant::now());
                    }
                    tracing::debug!(visitor = %visitor.addr, client = begun.lane.client_id(), %reason, "flow reset");
                    let end = self.end_on(&begun.lane, End::of(reason));
                    self.end(&begun, reason);
                    self.note_end(&visitor, begun.lane.client_id(), (sent.bytes(), 0), end);
                    return;
                }
                Opened::Refused(reason) => {
                    tracing::debug!(visitor = %visitor.addr, client = begun.lane.client_id(), %reason, "refused by the client");
                    self.end(&begun, FlowError::NoError);
                    self.end_on(&begun.lane, End::of(reason))
                }
                Opened::Unheard => {
                    self.counters().visitors_unheard.increment();
                    tracing::debug!(visitor = %visitor.addr, client = begun.lane.client_id(), "the client does not answer");
                    visitor.tried = tried;
                    // The reset comes behind the visitor's bytes, in case the client goes on: it
                    // must not serve what is served elsewhere.
                    self.end(&begun, FlowError::VisitorReset);
                    End::LaneLost
                }
            };
            let client = begun.lane.client_id().to_owned();
            drop((begun, ticket));
            match self.retry(&socket, visitor, &sent) {
                Again::Here(again) => (visitor, begun, ticket) = *again,
                Again::Elsewhere => return,
                Again::Nowhere(visitor) => {
                    return self.note_end(&visitor, &client, (sent.bytes(), 0), end);
                }
            }
        }
    }

    /// The end of a flow that was on this lane.
    fn end_on(&self, lane: &LaneUse, end: End) -> End {
        end.with_lane(lane.quic.is_open(), self.is_draining())
    }

    /// Writes the flow's line of the access log.
    fn note_end(&self, visitor: &Visitor, client: &str, bytes: (u64, u64), end: End) {
        let service = self.service();
        service.access_log.finished(&FinishedFlow {
            service: &service.name,
            client,
            visitor: visitor.addr,
            protocol: Protocol::Tcp,
            bytes_in: bytes.0,
            bytes_out: bytes.1,
            lasted: visitor.accepted.elapsed(),
            end,
        });
    }

    fn log_end(&self, ended: tcp::Ended, visitor: &Visitor, lane: &LaneUse) {
        let tcp::Ended {
            how,
            bytes_in,
            bytes_out,
            ..
        } = ended;
        let end = match how {
            TcpFlowEnd::Completed => End::Closed,
            TcpFlowEnd::Reset(reason) => self.end_on(lane, End::of(reason)),
            TcpFlowEnd::Stalled => End::Stalled,
        };
        self.note_end(visitor, lane.client_id(), (bytes_in, bytes_out), end);
        let (client, visitor) = (lane.client_id(), visitor.addr);
        tracing::debug!(%visitor, client, %how, bytes_in, bytes_out, "flow ended");
        match how {
            TcpFlowEnd::Completed => {}
            TcpFlowEnd::Reset(reason) => {
                if reason.is_untouched() {
                    // Too much had been sent, or too long ago.
                    self.count_refused(visitor, Refusal::NotServed);
                }
            }
            TcpFlowEnd::Stalled => {
                if let Some(suppressed) = self.context().stall_log.pass(Instant::now()) {
                    tracing::warn!(
                        %visitor,
                        client,
                        stall_timeout = ?self.stall_timeout(),
                        suppressed,
                        "the visitor has taken no byte for stall_timeout; flow reset"
                    );
                }
            }
        }
    }

    /// Ends a stream whose flow did not get beyond its beginning.
    fn end(&self, begun: &BegunStream, reason: FlowError) {
        let lane = &begun.lane.quic;
        lane.reset(begun.stream, reason);
        lane.stop(begun.stream, reason);
        lane.detach(begun.stream);
        self.counters().tcp_flows_reset.increment();
    }

    /// Begins a refused flow anew.
    fn retry(self: &Rc<Self>, socket: &TcpSocket, mut visitor: Box<Visitor>, sent: &Sent) -> Again {
        loop {
            match self.way(&mut visitor) {
                Some(Route::Here(begun, ticket)) => {
                    self.counters().visitors_retried.increment();
                    return Again::Here(Box::new((visitor, begun, ticket)));
                }
                Some(Route::Elsewhere(core, ticket)) => {
                    // The other core gets another descriptor of the socket; ours is closed when the
                    // kernel has let go of it.
                    let Ok(stream) = socket.try_clone() else {
                        self.counters().accepts_failed.increment();
                        continue;
                    };
                    visitor.sent = sent.to_bytes();
                    visitor.ended = sent.ended();
                    match self.hand_over(core, stream, visitor, ticket) {
                        Ok(()) => {
                            self.counters().visitors_retried.increment();
                            return Again::Elsewhere;
                        }
                        Err((_, back)) => visitor = back,
                    }
                }
                None => {
                    self.count_refused(visitor.addr, Refusal::NotServed);
                    return Again::Nowhere(visitor);
                }
            }
        }
    }
}
