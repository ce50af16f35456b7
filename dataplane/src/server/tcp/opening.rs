//! The first part of a TCP flow on the server: from the Open header until the service has answered.
//!
//! The visitor's bytes follow the header at once, without a round trip. A client that refuses the
//! flow before its service accepted the connection says so by its code
//! ([`FlowError::is_untouched`]). So until the service has answered, what was sent is kept
//! ([`Sent`]), and a refused flow can begin anew on another client without the visitor noticing. A
//! lane that just ends may have delivered everything, and a request must not be delivered twice;
//! then only a flow of whose visitor nothing was sent yet can begin anew.
//!
//! A lane may also fall silent, long before it ends, because its client has died or its path is
//! broken. A flow of whose visitor nothing was sent yet leaves the lane as soon as there is a
//! better one. A flow that has sent something stays for [`UNHEARD_MAX`]. If the client has not
//! acknowledged its first byte by then, it begins anew elsewhere, or is refused: a client
//! acknowledges that byte before its service gets it. What the client acknowledges of other flows
//! says nothing, because it may have been on its way when the byte was sent. (A client that was
//! merely stopped finds the flow's reset behind its bytes when it goes on.) If the byte was
//! acknowledged, the service may be at work on it, and the flow waits for the lane's end.
//!
//! Once the service has answered, or too much was kept or for too long, the flow goes on like any
//! other ([`crate::flow::tcp`]), and this part costs it nothing any more.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use qmux_proto::FlowError;
use quiche::BufSplit as _;

use crate::buffer::{Block, BlockSize, SMALL_BLOCK_BYTES, StreamBuf};
use crate::core::counters::CoreCounters;
use crate::core::service_counters::ServiceCounters;
use crate::flow::fill::{Next, Until, fill};
use crate::flow::tcp::Begun;
use crate::flow::watch::FlowWatch;
use crate::quic::lane::{Lane, Silent, StreamRead, StreamRoom, StreamWaiters};
use crate::sys::tcp::TcpSocket;

/// Bytes of a visitor that are kept. Requests are smaller; a visitor who sends more has had an
/// answer before, or sends a file.
const SENT_BYTES_MAX: usize = 64 << 10;

/// Memory for this that the flows of one core may hold: a thousand flows with as much as one may
/// have.
const HELD_BYTES_MAX: usize = 64 << 20;

/// How long the bytes are kept: a client gives each address of its service 10 seconds, and few
/// services have more than three. A flow that has been silent for longer was accepted.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// How long a flow without an answer stays on a lane whose peer leaves everything unanswered, so
/// that a visitor is served elsewhere or refused within two seconds of a death: half a second may
/// pass before the first question.
const UNHEARD_MAX: Duration = Duration::from_millis(1_500);

/// After a silence was noticed, what has come meanwhile is read first: this process may have stood
/// still, and its timers fire before it reads.
pub(crate) const READ_FIRST: Duration = Duration::from_millis(100);

/// A buffer of which a smaller fraction is used is not kept as it is, but copied out.
const KEPT_WHOLE_ABOVE: usize = 2;

const _: () = assert!(SENT_BYTES_MAX * KEPT_WHOLE_ABOVE <= HELD_BYTES_MAX);

/// Memory that is held by flows whose service has not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Held(Cell<usize>);

thread_local! {
    static HELD: Rc<Held> = Rc::default();
}

impl Held {
    /// The counter of this core: visitors may come to a thousand ports.
    pub(crate) fn of_this_core() -> Rc<Held> {
        HELD.with(Rc::clone)
    }
}

/// The bytes that a visitor has sent so far, from the first one on.
pub(crate) struct Sent {
    pieces: Vec<StreamBuf>,
    bytes: usize,
    held_bytes: usize,
    ended: bool,
    /// The first byte, apart from the others, as the lane got it.
    first: Option<StreamBuf>,
    /// Number of packets that the lane had received when a visitor who sent nothing had ended.
    heard_before: Option<u64>,
    held: Rc<Held>,
}

impl Sent {
    /// Begins with bytes that another core has read from the visitor. They exist already, so they
    /// may be above the bound.
    pub(crate) fn new(held: &Rc<Held>, bytes: &[u8], ended: bool) -> Sent {
        let mut sent = Sent {
            pieces: Vec::new(),
            bytes: 0,
            held_bytes: 0,
            ended,
            first: None,
            heard_before: None,
            held: Rc::clone(held),
        };
        if !bytes.is_empty() {
            sent.keep(StreamBuf::copied(bytes));
        }
        sent
    }

    /// The bytes in one piece, for another core.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let pieces: Vec<&[u8]> = self.pieces.iter().map(AsRef::as_ref).collect();
        pieces.concat()
    }

    /// Whether a client cannot have got any byte or FIN of the visitor.
    fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.ended
    }

    /// Number of bytes that the visitor has sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether the visitor has sent a FIN.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// How many more bytes may be kept.
    fn room(&self) -> usize {
        if self.held.0.get() >= HELD_BYTES_MAX {
            0
        } else {
            SENT_BYTES_MAX.saturating_sub(self.bytes)
        }
    }

    /// Returns everything from the beginning, for another lane.
    fn begin_anew(&mut self) -> Vec<StreamBuf> {
        (self.first, self.heard_before) = (None, None);
        let pieces = self.pieces.clone();
        pieces.into_iter().flat_map(|it| self.parts(it)).collect()
    }

    /// Cuts a piece into the parts that the lane is to get: the very first byte is a block of its
    /// own. quiche lets go of a block when all that is in it was acknowledged; of this one, when
    /// the client has anything of the visitor.
    fn parts(&mut self, mut piece: StreamBuf) -> impl Iterator<Item = StreamBuf> + use<> {
        let first = (self.first.is_none() && !piece.as_ref().is_empty()).then(|| {
            let first = StreamBuf::copied(&piece.as_ref()[..1]);
            piece = piece.split_at(1);
            first
        });
        if first.is_some() {
            self.first.clone_from(&first);
        }
        let rest = (!piece.as_ref().is_empty()).then_some(piece);
        first.into_iter().chain(rest)
    }

    /// Notes what was heard of `lane` when a visitor had ended without a byte.
    fn note_heard(&mut self, lane: &Lane) {
        if self.ended && self.bytes == 0 && self.heard_before.is_none() {
            self.heard_before = Some(lane.packets_received());
        }
    }

    /// Whether nothing shows that the client of `lane` has anything of the visitor.
    fn is_unheard(&self, lane: &Lane) -> bool {
        let same = |before| before == lane.packets_received();
        match &self.first {
            Some(first) => !first.is_held_alone(),
            None => self.heard_before.is_none_or(same),
        }
    }

    fn keep(&mut self, piece: StreamBuf) {
        let piece = if piece.as_ref().len() * KEPT_WHOLE_ABOVE < piece.held_bytes() {
            StreamBuf::copied(piece.as_ref())
        } else {
            piece
        };
        self.bytes += piece.as_ref().len();
        self.held_bytes += piece.held_bytes();
        self.held.0.set(self.held.0.get() + piece.held_bytes());
        self.pieces.push(piece);
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.held.0.set(self.held.0.get() - self.held_bytes);
    }
}

/// The result of the first part of a flow.
pub(crate) enum Opened {
    /// The flow goes on like any other.
    Flow(Begun),
    /// The client refused the flow, and its service has seen nothing of it; or the lane ended
    /// before there was anything to see.
    Refused(FlowError),
    /// The lane is silent, and nothing shows that the client has anything of the flow.
    Unheard,
    /// The flow was reset by either side.
    Reset(FlowError),
}

/// A flow that has just begun.
pub(crate) struct Opening<'a> {
    /// The visitor's socket.
    pub(crate) socket: &'a TcpSocket,
    /// The lane that carries the flow.
    pub(crate) lane: &'a Lane,
    /// The flow's stream.
    pub(crate) stream: u64,
    /// The waiters of the stream.
    pub(crate) waiters: &'a Rc<StreamWaiters>,
    /// The time at which the flow began on this lane.
    pub(crate) began: Instant,
    /// Whether there is a lane or a client that answers, while this one does not.
    pub(crate) better: &'a dyn Fn() -> bool,
    /// The flow's place among those of the core.
    pub(crate) watch: &'a FlowWatch,
    /// The core's counters.
    pub(crate) counters: &'a CoreCounters,
    /// The counters of the visitor's service.
    pub(crate) service: &'a ServiceCounters,
}

/// What a flow waits for besides the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// More bytes of the visitor.
    Visitor,
    /// Room in the stream.
    Room,
    /// Nothing else, because the visitor has ended.
    Answer,
}

/// The events that have come for the flow.
#[derive(Clone, Copy, Default)]
struct Ready {
    answer: bool,
    too_long: bool,
    ended: Option<FlowError>,
}

impl Opening<'_> {
    /// Sends the rest of the Open header and what the visitor has sent, and passes on what it goes
    /// on to send, until the service answers.
    pub(crate) async fn run(&self, header: Option<StreamBuf>, sent: &mut Sent) -> Opened {
        let mut begun = Begun {
            bytes_in: sent.bytes as u64,
            unsent: header.into_iter().chain(sent.begin_anew()).collect(),
            ended: sent.ended,
            ..Begun::default()
        };
        // The header that the stream has got so far goes behind this turn, in one packet with what
        // the visitor has sent by now.
        self.lane.mark_dirty();
        let mut too_long = pin!(crate::core::time::sleep(KEPT_FOR));
        loop {
            sent.note_heard(self.lane);
            let wait = match self.pass_on(sent, &mut begun) {
                Ok(wait) => wait,
                Err(Stop::Stopped(error))
                    if may_begin_anew(error, self.lane.is_open(), sent.is_empty()) =>
                {
                    return Opened::Refused(error);
                }
                // The pumps find the same error again.
                Err(Stop::Stopped(_) | Stop::Committed) => return Opened::Flow(begun),
                Err(Stop::Gone) => return Opened::Reset(FlowError::VisitorReset),
            };
            sent.note_heard(self.lane);
            let unheard = match self.unheard_until(sent) {
                Some(until) if until <= Instant::now() => return Opened::Unheard,
                until => until,
            };
            let ready = self.wait(wait, too_long.as_mut(), unheard).await;
            if let Some(reason) = ready.ended {
                return Opened::Reset(reason);
            }
            if ready.answer
                && let Some(opened) = self.answer(sent, &mut begun)
            {
                return opened;
            }
            if ready.too_long {
                return Opened::Flow(begun);
            }
        }
    }

    /// The time at which the flow leaves a lane that is silent, if it may.
    fn unheard_until(&self, sent: &Sent) -> Option<Instant> {
        let silent = self.lane.silent()?;
        let unheard = sent.is_unheard(self.lane);
        let at_once = sent.is_empty() && (self.better)();
        leaves_at(silent, self.began, unheard, at_once)
    }

    /// Moves what can be moved from the visitor to the client now; returns what must be waited for
    /// to move more.
    fn pass_on(&self, sent: &mut Sent, begun: &mut Begun) -> Result<Wait, Stop> {
        begun.empty = false;
        loop {
            if begun.fin_sent {
                return Ok(Wait::Answer);
            }
            if !self.push(begun).map_err(Stop::Stopped)? {
                return Ok(Wait::Room);
            }
            if begun.fin_sent {
                return Ok(Wait::Answer);
            }
            if begun.empty {
                return Ok(Wait::Visitor);
            }
            let keep = sent.room();
            if keep == 0 {
                if sent.bytes < SENT_BYTES_MAX {
                    self.counters.retry_memory_short.increment();
                }
                return Err(Stop::Committed);
            }
            match self.lane.room(self.stream, keep, self.waiters) {
                StreamRoom::Bytes(room) => {
                    begun.empty = !self.read(room, sent, begun)?;
                }
                StreamRoom::Blocked => return Ok(Wait::Room),
                StreamRoom::Stopped(error) => return Err(Stop::Stopped(error)),
            }
        }
    }

    /// Gives the stream what it has not taken yet, with the FIN if the visitor has ended. Returns
    /// true if it took all.
    fn push(&self, begun: &mut Begun) -> Result<bool, FlowError> {
        while let Some(piece) = begun.unsent.pop_front() {
            let fin = begun.ended && begun.unsent.is_empty();
            match self.lane.write(self.stream, piece, fin, self.waiters)? {
                None => begun.fin_sent = fin,
                Some(rest) => {
                    begun.unsent.push_front(rest);
                    match self.lane.room(self.stream, 1, self.waiters) {
                        StreamRoom::Bytes(_) => {}
                        StreamRoom::Blocked => return Ok(false),
                        StreamRoom::Stopped(error) => return Err(error),
                    }
                }
            }
        }
        if begun.ended && !begun.fin_sent {
            begun.fin_sent = self.lane.finish(self.stream, self.waiters)?;
            return Ok(begun.fin_sent);
        }
        Ok(true)
    }

    /// Reads up to `room` bytes of the visitor. Returns false if nothing is left now.
    fn read(&self, room: usize, sent: &mut Sent, begun: &mut Begun) -> Result<bool, Stop> {
        let mut block = Block::take(BlockSize::Small);
        let capacity = SMALL_BLOCK_BYTES.min(room);
        // Few visitors end behind their request: the call that would see that FIN is mostly in
        // vain.
        let (read, next) = fill(
            self.socket,
            &mut block.bytes_mut()[..capacity],
            Until::Short,
        );
        if read > 0 {
            self.watch.has_moved();
            self.counters.tcp_bytes_in.add(read as u64);
            self.service.tcp_bytes_in.add(read as u64);
            begun.bytes_in += read as u64;
            let piece = block.freeze(read);
            sent.keep(piece.clone());
            begun.unsent.extend(sent.parts(piece));
        }
        match next {
            Next::Error => return Err(Stop::Gone),
            Next::Fin => {
                sent.ended = true;
                begun.ended = true;
                return Ok(true);
            }
            Next::Nothing => return Ok(false),
            Next::More => {}
        }
        Ok(true)
    }

    /// The answer of the client or its service, if there is one.
    fn answer(&self, sent: &Sent, begun: &mut Begun) -> Option<Opened> {
        let mut block = Block::take(BlockSize::Small);
        match self.lane.read(self.stream, block.bytes_mut(), self.waiters) {
            StreamRead::Blocked | StreamRead::Bytes(0, false) => None,
            StreamRead::Bytes(read, fin) => {
                let mut begun = std::mem::take(begun);
                begun.early = block.bytes()[..read].to_vec();
                begun.early_fin = fin;
                Some(Opened::Flow(begun))
            }
            StreamRead::Reset(error)
                if may_begin_anew(error, self.lane.is_open(), sent.is_empty()) =>
            {
                Some(Opened::Refused(error))
            }
            StreamRead::Reset(error) => Some(Opened::Reset(error)),
        }
    }

    /// Waits for anything that concerns the flow.
    async fn wait(
        &self,
        wait: Wait,
        mut too_long: Pin<&mut crate::core::time::Sleep>,
        unheard: Option<Instant>,
    ) -> Ready {
        // There is a timer only on a lane that is silent; and it is on the heap, so it costs other
        // flows nothing.
        let mut unheard = unheard.map(|at| Box::pin(crate::core::time::sleep_until(at)));
        let mut readable = pin!(self.socket.readable());
        poll_fn(|cx| {
            let ended = self.look_around(wait, cx);
            let answer = self.waiters.readable.poll(cx).is_ready();
            let mut other = self.waiters.writable.poll(cx).is_ready();
            // The read that follows finds an error again.
            if wait == Wait::Visitor {
                other |= readable.as_mut().poll(cx).is_ready();
            }
            let too_long = too_long.as_mut().poll(cx).is_ready();
            let unheard = unheard
                .as_mut()
                .is_some_and(|at| at.as_mut().poll(cx).is_ready());
            if answer || other || too_long || unheard || ended.is_some() {
                return Poll::Ready(Ready {
                    answer,
                    too_long,
                    ended,
                });
            }
            Poll::Pending
        })
        .await
    }

    /// Checks for orders to end, and for a reset of the visitor's socket while nothing is read from
    /// it. Nothing else would report that, whether there is no room for its bytes or it has sent
    /// its FIN.
    fn look_around(&self, wait: Wait, cx: &mut Context<'_>) -> Option<FlowError> {
        self.watch.attend(cx);
        let told = self.watch.told();
        let gone = self.watch.take_look().is_some()
            && wait != Wait::Visitor
            && self.socket.take_error().is_some();
        told.or(gone.then_some(FlowError::VisitorReset))
    }
}

/// Whether a flow that ended with `error` may begin on another client, because its service has seen
/// nothing of it.
fn may_begin_anew(error: FlowError, lane_is_open: bool, nothing_sent: bool) -> bool {
    error.is_untouched() || (!lane_is_open && nothing_sent)
}

/// The time at which a flow that began at `began` leaves a lane that is silent. `unheard`: nothing
/// shows that the client has anything of its visitor; `at_once`: nothing was sent, and there is a
/// better lane.
fn leaves_at(silent: Silent, began: Instant, unheard: bool, at_once: bool) -> Option<Instant> {
    // What came while this process stood still may not have been read yet.
    let first = silent.noticed + READ_FIRST;
    if at_once {
        return Some(first);
    }
    unheard.then(|| first.max(silent.since.max(began) + UNHEARD_MAX))
}

/// Why no more of the visitor's bytes are passed on here.
enum Stop {
    /// The client takes no more.
    Stopped(FlowError),
    /// The visitor has reset its connection.
    Gone,
    /// No more can be kept.
    Committed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::endpoint::tests::{Pair, run, until};

    #[test]
    fn a_flow_begins_anew_if_it_was_refused_or_its_lane_ended_before_anything_was_sent() {
        for lane_is_open in [true, false] {
            for nothing_sent in [true, false] {
                let anew = |error| may_begin_anew(error, lane_is_open, nothing_sent);
                assert!(anew(FlowError::DialRefused));
                assert!(anew(FlowError::Draining));
                assert_eq!(anew(FlowError::Internal), !lane_is_open && nothing_sent);
            }
        }
    }

    #[test]
    fn a_flow_leaves_a_silent_lane_if_nothing_says_that_the_client_has_it() {
        let since = Instant::now();
        let silent = Silent {
            since,
            noticed: since + Duration::from_millis(300),
        };
        let first = silent.noticed + READ_FIRST;
        let late = since + Duration::from_secs(7);
        assert_eq!(leaves_at(silent, since, true, true), Some(first));
        assert_eq!(
            leaves_at(silent, since, true, false),
            Some(since + UNHEARD_MAX)
        );
        assert_eq!(
            leaves_at(silent, late, true, false),
            Some(late + UNHEARD_MAX),
            "a newcomer waits as long for it to be heard again"
        );
        assert_eq!(leaves_at(silent, since, false, false), None);
        let stood_still = Silent {
            since,
            noticed: late,
        };
        assert_eq!(
            leaves_at(stood_still, since, true, false),
            Some(late + READ_FIRST),
            "what has come is read first"
        );
    }

    #[test]
    fn a_byte_or_a_fin_of_the_visitor_is_something_sent() {
        let held = Rc::default();
        assert!(Sent::new(&held, b"", false).is_empty());
        assert!(!Sent::new(&held, b"", true).is_empty());
        assert!(!Sent::new(&held, b"x", false).is_empty());
    }

    #[test]
    fn the_first_byte_of_a_visitor_travels_apart_and_only_that_one() {
        let mut sent = Sent::new(&Rc::default(), b"abc", false);
        let bytes = |pieces: &[StreamBuf]| -> Vec<Vec<u8>> {
            pieces.iter().map(|it| it.as_ref().to_vec()).collect()
        };
        for _ in 0..2 {
            let parts = sent.begin_anew();
            assert_eq!(bytes(&parts), [b"a".to_vec(), b"bc".to_vec()]);
            let more: Vec<_> = sent.parts(StreamBuf::copied(b"def")).collect();
            assert_eq!(bytes(&more), [b"def".to_vec()]);
        }
        let mut sent = Sent::new(&Rc::default(), b"x", true);
        assert_eq!(bytes(&sent.begin_anew()), [b"x".to_vec()]);
        let mut sent = Sent::new(&Rc::default(), b"", true);
        assert_eq!(bytes(&sent.begin_anew()), [b""; 0]);
    }

    #[test]
    fn a_flow_is_heard_when_its_own_first_byte_was_acknowledged_not_when_another_one_was() {
        run(async |config| {
            let lanes = Pair::connected(&config).await;
            let (client, lane) = (&lanes.client_lane, &lanes.server_lane);
            let stream = lane.open_stream().expect("allowed");
            let waiters = lane.attach(stream);
            let header = StreamBuf::copied(b"header");
            assert!(lane.write(stream, header, false, &waiters).is_ok());
            let mut sent = Sent::new(&Rc::default(), b"request", false);
            let mut parts = sent.begin_anew();
            // The header is acknowledged, and other packets come, but the visitor's bytes wait.
            let before = lane.packets_received();
            let round_trips = || {
                client.ping();
                lane.packets_received() > before + 3
            };
            until("some packets", round_trips).await;
            assert!(sent.is_unheard(lane));
            for part in parts.drain(..) {
                assert!(lane.write(stream, part, false, &waiters).is_ok());
            }
            assert!(sent.is_unheard(lane));
            until("an acknowledgement", || !sent.is_unheard(lane)).await;
        });
    }
}
