//! A lane for tests: it keeps what is sent, until someone takes it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use qmux_proto::FlowError;
use qmux_proto::control::Message;
use qmux_proto::datagram::Header;

use super::encode::FlowLane;
use crate::buffer::Datagram;
use crate::core::event::Event;
use crate::quic::lane::DatagramRefused;

/// One end of a lane.
#[derive(Default)]
pub(crate) struct FakeLane {
    pub(crate) room: Cell<usize>,
    pub(crate) queue_max: Cell<usize>,
    pub(crate) datagrams: RefCell<VecDeque<Vec<u8>>>,
    pub(crate) control: RefCell<VecDeque<Message>>,
    pub(crate) asked: Cell<usize>,
    pub(crate) silent: Cell<bool>,
    /// Set when something was sent.
    pub(crate) sent: Event,
}

impl FakeLane {
    pub(crate) fn new(room: usize) -> Rc<FakeLane> {
        let lane = FakeLane::default();
        lane.room.set(room);
        lane.queue_max.set(usize::MAX);
        Rc::new(lane)
    }

    /// Takes the datagrams that were sent.
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        self.datagrams.borrow_mut().drain(..).collect()
    }

    /// Takes the FlowClosed messages that were sent.
    pub(crate) fn take_closed(&self) -> Vec<(u64, FlowError)> {
        let messages = self.control.borrow_mut().drain(..).collect::<Vec<_>>();
        messages
            .into_iter()
            .map(|message| match message {
                Message::FlowClosed(closed) => (closed.flow_id, closed.reason),
                other => panic!("unexpected {other:?}"),
            })
            .collect()
    }
}

impl FlowLane for FakeLane {
    fn key(&self) -> u64 {
        0
    }

    fn datagram_room(&self) -> usize {
        self.room.get()
    }

    fn bundle(&self, _header: &Header<'_>, _payload: &[u8]) -> Option<Result<(), DatagramRefused>> {
        None
    }

    fn send_datagram(&self, datagram: Datagram) -> Result<(), DatagramRefused> {
        let mut datagrams = self.datagrams.borrow_mut();
        if datagrams.len() >= self.queue_max.get() {
            return Err(DatagramRefused::QueueFull);
        }
        if datagram.as_ref().len() > self.room.get() {
            return Err(DatagramRefused::TooLarge);
        }
        datagrams.push_back(datagram.as_ref().to_vec());
        self.sent.set();
        Ok(())
    }

    fn send_control(&self, message: &Message) {
        self.control.borrow_mut().push_back(message.clone());
        self.sent.set();
    }

    fn asked(&self, _now: Instant) {
        self.asked.set(self.asked.get() + 1);
    }

    fn is_silent(&self) -> bool {
        self.silent.get()
    }

    fn count_datagrams(&self) {}
}
