//! Either end of a handover, played by the test: it stops, lies or is late where it wants to.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use super::wait::PATIENCE;

const VERSION: u32 = 2;
const MESSAGE_BYTES_MAX: usize = 4_096;
const SPACE_BYTES: usize = rustix::cmsg_space!(ScmRights(1));

/// The answer of a predecessor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The sockets are the successor's.
    Gone,
    /// The predecessor keeps the sockets, for this reason.
    Kept(String),
}

/// A process that wants the sockets of another one.
pub(crate) struct Successor {
    connection: Socket,
    sockets: Vec<(Value, OwnedFd)>,
    /// The socket to which packets of the other process's lanes may be sent.
    _packets: OwnedFd,
}

impl Successor {
    /// Comes to the process that listens at `path`, and gets its sockets.
    pub(crate) fn come(path: &Path, cores: usize) -> Self {
        let connection = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        connection.set_read_timeout(Some(PATIENCE)).expect("set");
        let address = SockAddr::unix(path).expect("a path");
        connection.connect(&address).expect("somebody listens");
        say(&connection, &json!({"version": VERSION, "cores": cores}));
        let offer = json(&hear(&connection).expect("an offer").0);
        let count = offer["Sockets"].as_u64();
        let count = count.unwrap_or_else(|| panic!("no sockets are offered: {offer}"));
        let socket = |_| {
            let (text, fd) = hear(&connection).expect("a socket");
            (json(&text), fd.expect("with its descriptor"))
        };
        let sockets = (0..count).map(socket).collect();
        let packets = hear(&connection).and_then(|(_, fd)| fd);
        Self {
            sockets,
            _packets: packets.expect("where packets go"),
            connection,
        }
    }

    pub(crate) fn take(&self) {
        send(&self.connection, b"take", None);
    }

    /// The answer of the other process.
    pub(crate) fn answer(&self) -> Answer {
        let (text, _) = hear(&self.connection).expect("an answer");
        match json(&text) {
            Value::String(text) if text == "Gone" => Answer::Gone,
            answer => match answer["Kept"].as_str() {
                Some(why) => Answer::Kept(why.to_owned()),
                None => panic!("that is no answer: {answer}"),
            },
        }
    }

    /// The sockets for TCP visitors at this address.
    pub(crate) fn listeners(&self, address: SocketAddr) -> Vec<TcpListener> {
        let is_it = |text: &Value| text["used_for"] == "tcp" && text["address"] == json!(address);
        let lent = self.sockets.iter().filter(|(text, _)| is_it(text));
        lent.map(|(_, fd)| fd.try_clone().expect("a descriptor").into())
            .collect()
    }
}

/// A process that lends nothing, and listens for as long as this lives.
pub(crate) struct Predecessor(Socket);

impl Predecessor {
    pub(crate) fn listen(path: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        socket
            .bind(&SockAddr::unix(path).expect("a path"))
            .expect("bound");
        socket.listen(8).expect("listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        Self(socket)
    }

    /// Lends nothing to the successor that comes.
    pub(crate) fn lend_nothing(&self) -> Lending {
        let (connection, _) = self.0.accept().expect("a successor");
        connection.set_read_timeout(Some(PATIENCE)).expect("set");
        hear(&connection).expect("a successor says who it is");
        say(&connection, &json!({"Sockets": 0}));
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        send(&connection, b"packets", Some(&theirs));
        Lending {
            connection,
            _packets: ours,
        }
    }
}

/// The connection between the two until the sockets have changed hands. It ends without a message.
pub(crate) struct Lending {
    connection: Socket,
    _packets: Socket,
}

impl Lending {
    pub(crate) fn wait_for_take(&self) {
        while hear(&self.connection).expect("a word").0 != b"take" {}
    }

    pub(crate) fn keep(&self, why: &str) {
        say(&self.connection, &json!({"Kept": why}));
    }
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}

fn say(connection: &Socket, value: &Value) {
    send(connection, value.to_string().as_bytes(), None);
}

fn send(connection: &Socket, text: &[u8], fd: Option<&Socket>) {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let pieces = [IoSlice::new(text)];
    sendmsg(connection, &pieces, &mut control, SendFlags::NOSIGNAL).expect("sent");
}

/// The next message, with its descriptor; nothing at the end.
fn hear(connection: &Socket) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut pieces = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let heard = recvmsg(connection, &mut pieces, &mut control, flags).expect("in time");
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.last(),
        _ => None,
    });
    text.truncate(heard.bytes);
    (heard.bytes > 0).then_some((text, fd))
}
