//! The predecessor's part of a handover: it listens for a successor, lends its sockets, and stops
//! reading those that the successor takes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use sd_notify::NotifyState;
use socket2::{Domain, Socket, Type};

use super::messages::{
    self, Answer, Hello, Left, MESSAGE_BYTES_MAX, Offer, PACKETS, TAKE, VERSION,
};
use super::peer;
use crate::core::mailbox::Mailboxes;
use crate::process::admin::socket::{Beside, bind_beside, check_kind, check_place};
use crate::process::exit::Failure;
use crate::process::mail::CoreMail;
use crate::process::reload::{Kept, Listening};
use crate::server::ServerShared;
use crate::server::ids::DoorId;
use crate::server::mail::ServerMail;
use crate::server::succession::{Lent, PASSED_ON_HEAD_BYTES, PassedOn, SocketUse};
use crate::sys::pass::{self, Peer};

pub(super) const KEY: &str = "server.handover";

/// How long a successor may take between two messages. It reads its configuration before it
/// connects, and in between binds what is new and starts its cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the cores may take.
const CORES_PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a core with a full mailbox is told again.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// Pause after accept(2) has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Buffer for passed-on packets: some milliseconds at a gigabit per second.
const PACKETS_BUFFER_BYTES: usize = 4 << 20;

/// The largest packet that is passed on: what a receive call may bring.
const PACKET_BYTES_MAX: usize = 1 << 16;

/// The giving side of a handover.
pub(crate) struct Giver {
    pub(crate) cores: usize,
    pub(crate) server: Arc<ServerShared>,
    pub(in crate::process) mailboxes: Mailboxes<CoreMail>,
    /// The place where it is decided who has the sockets.
    pub(in crate::process) listening: Arc<Listening>,
    /// Whether this process is about to end.
    pub(crate) is_draining: Box<dyn Fn() -> bool + Send>,
    /// Stops the admin endpoint from listening at its address.
    pub(crate) close_admin: Box<dyn Fn() + Send>,
    /// Called once, with the successor's process id, when the successor serves.
    pub(crate) handed_over: Box<dyn Fn(u32) + Send>,
}

/// A [`Giver`] that listens already, but under a name that nobody knows.
#[derive(Debug)]
pub(crate) struct Waiting {
    beside: Beside,
    path: PathBuf,
}

impl Waiting {
    /// Moves its socket to the configured path, where successors find it.
    ///
    /// # Errors
    /// If the socket cannot be moved.
    pub(crate) fn be_found(self) -> Result<(), Failure> {
        let path = self.path;
        self.beside
            .move_to_place()
            .map_err(|error| cannot_bind(&path, &error))
    }
}

fn cannot_bind(path: &Path, error: &io::Error) -> Failure {
    let why = format!(
        "cannot bind unix:{}: {error}; its directory must be there, and writable for this user",
        path.display()
    );
    Failure::of_key(KEY, why)
}

impl Giver {
    /// Listens from now on, on a thread of its own, for successors at `path`. `succeeds` says that
    /// this process is about to take the place of the one that listens there.
    ///
    /// # Errors
    /// If that is not possible.
    pub(crate) fn start(self, path: &Path, succeeds: bool) -> Result<Waiting, Failure> {
        if succeeds {
            check_kind(path, KEY)?;
        } else {
            check_place(path, KEY)?;
        }
        let bound = bind_beside(path, Type::SEQPACKET);
        let (listener, beside) = bound.map_err(|error| cannot_bind(path, &error))?;
        let thread = std::thread::Builder::new().name("handover".into());
        let started = listener
            .set_nonblocking(false)
            .and_then(|()| thread.spawn(move || self.listen(listener)));
        let failed = |error| Failure::Running(format!("thread of the handover: {error}"));
        started.map_err(failed)?;
        Ok(Waiting {
            beside,
            path: path.to_owned(),
        })
    }

    fn listen(self, listener: Socket) {
        loop {
            match listener.accept() {
                Ok((connection, _)) => match self.lend(&connection) {
                    Ok(Some(packets)) => {
                        // The successor listens there itself.
                        drop(listener);
                        self.give_up(&connection);
                        return pass_packets(&packets, &self);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a successor has come and gone; this process goes on");
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "no successor can come now");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Lends the sockets. Returns the socket from which passed-on packets of this process's lanes
    /// will come; `None` if the successor was refused.
    fn lend(&self, connection: &Socket) -> io::Result<Option<Socket>> {
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        if let Some(stranger) = peer::stranger(connection)? {
            return Err(io::Error::other(format!("it is a stranger: {stranger}")));
        }
        let hello: Hello = serde_json::from_slice(&next(connection)?)?;
        if let Some(why) = self.refusal(&hello) {
            tracing::warn!(why, "a successor is refused");
            pass::send(connection, &messages::text(&Offer::Refused(why)), None)?;
            return Ok(None);
        }
        let as_of = self.listening.as_of();
        let (told, lent) = bounded(self.cores);
        self.tell(|| ServerMail::Lend(told.clone()));
        drop(told);
        let lent: Vec<Lent> = all(&lent, self.cores)?.into_iter().flatten().collect();
        let packets = offer(connection, &lent)?;
        let mut taken: HashSet<_> = lent.iter().map(|it| (it.used_for, it.address)).collect();
        drop(lent);
        if let Err(error) = wait_for_take(connection, &mut taken) {
            // If the successor is merely late it must not believe that nobody is here any more.
            let why = "no word came from the new one in time, or a wrong one";
            let _gone = keep(connection, why);
            return Err(error);
        }
        let taken = taken.into_iter().collect();
        let handed_over = &self.server.handed_over;
        let why = match self.listening.hand_over(as_of, taken, handed_over) {
            Ok(()) => return Ok(Some(packets)),
            Err(Kept::Ends) => {
                "it was stopped while it handed over; start the next one when it has \
                                ended"
            }
            Err(Kept::HasChanged) => {
                "it has taken up another configuration while it handed over; start the next one again"
            }
        };
        tracing::warn!(why, "a successor is sent away");
        keep(connection, why)?;
        Ok(None)
    }

    fn refusal(&self, hello: &Hello) -> Option<String> {
        if hello.version != VERSION {
            return Some("it is of another version of qmux-dp, which hands over otherwise".into());
        }
        if (self.is_draining)() {
            return Some("it is about to end; start the next one when it has".into());
        }
        (hello.cores != self.cores).then(|| {
            format!(
                "it has {} cores and the new one {}; both must have as many (--cores)",
                self.cores, hello.cores
            )
        })
    }

    /// Hands the sockets over to a successor that is ready to serve.
    fn give_up(&self, connection: &Socket) {
        let (done, answers) = bounded(self.cores);
        self.tell(|| ServerMail::HandedOver(done.clone()));
        drop(done);
        if all(&answers, self.cores).is_err() {
            tracing::error!("a core is stuck, and may still read what is for the successor");
        }
        (self.close_admin)();
        let pid = Peer::of(connection).ok().and_then(|peer| peer.pid);
        if let Some(pid) = pid {
            // This comes before the successor says that it is ready, because only the main process
            // is believed.
            let _no_manager = sd_notify::notify(&[NotifyState::MainPid(pid.get())]);
        }
        if let Err(error) = pass::send(connection, &messages::text(&Answer::Gone), None) {
            tracing::warn!(%error, "the successor does not hear that it may begin");
        }
        (self.handed_over)(pid.map_or(0, NonZeroU32::get));
    }

    fn tell(&self, mail: impl Fn() -> ServerMail) {
        let until = Instant::now() + CORES_PATIENCE;
        for core in 0..self.cores {
            self.post(core, mail(), until);
        }
    }

    fn post(&self, core: usize, mail: ServerMail, until: Instant) {
        let mut mail = CoreMail::Server(mail);
        while let Err(back) = self.mailboxes.of(core).send(mail) {
            if Instant::now() >= until {
                return;
            }
            mail = back;
            std::thread::sleep(FULL_MAILBOX_PAUSE);
        }
    }
}

/// Offers the sockets, and a socket pair for packets of this process's lanes, of which it returns
/// this end.
fn offer(connection: &Socket, lent: &[Lent]) -> io::Result<Socket> {
    let offer = Offer::Sockets(lent.len());
    pass::send(connection, &messages::text(&offer), None)?;
    for socket in lent {
        let Lent {
            used_for,
            address,
            core,
            fd,
        } = socket;
        let text = messages::text(&messages::Socket::new(*used_for, *address, *core));
        pass::send(connection, &text, Some(fd.as_fd()))?;
    }
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    // A smaller buffer is enough as well.
    let _smaller = theirs.set_send_buffer_size(PACKETS_BUFFER_BYTES);
    pass::send(connection, PACKETS, Some(theirs.as_fd()))?;
    Ok(ours)
}

/// Waits until the successor takes the sockets. They are then in `taken`, which has contained what
/// was offered.
fn wait_for_take(
    connection: &Socket,
    taken: &mut HashSet<(SocketUse, SocketAddr)>,
) -> io::Result<()> {
    loop {
        let text = next(connection)?;
        if text == TAKE {
            return Ok(());
        }
        let left: Left = serde_json::from_slice(&text)?;
        let place = left.used_for().map(|used_for| (used_for, left.address));
        // Each is removed at most once, so this comes to an end.
        if !place.is_some_and(|place| taken.remove(&place)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn keep(connection: &Socket, why: &str) -> io::Result<()> {
    pass::send(connection, &messages::text(&Answer::Kept(why.into())), None)
}

fn next(connection: &Socket) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let received = pass::receive(connection, &mut bytes)?;
    let (length, _fd) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Collects one answer of each core.
fn all<T>(answers: &Receiver<T>, cores: usize) -> io::Result<Vec<T>> {
    let until = Instant::now() + CORES_PATIENCE;
    let answer = |_| answers.recv_deadline(until).map_err(io::Error::other);
    (0..cores).map(answer).collect()
}

/// Gives the cores the packets that the successor passes on, until it or this process ends.
fn pass_packets(packets: &Socket, giver: &Giver) {
    let mut doors: HashMap<SocketAddr, (DoorId, usize)> = HashMap::new();
    for door in giver.server.doors().iter() {
        let addresses = door.quic_addrs.iter().enumerate();
        doors.extend(addresses.map(|(index, address)| (*address, (door.id, index))));
    }
    let mut lost = vec![0; giver.cores];
    let mut bytes = vec![0; PASSED_ON_HEAD_BYTES + PACKET_BYTES_MAX];
    while let Ok(Some((length, _none))) = pass::receive(packets, &mut bytes) {
        let Some(passed) = PassedOn::decode(&bytes[..length]) else {
            continue;
        };
        let Some((door, address)) = doors.get(&passed.door).copied() else {
            continue;
        };
        let Some(lost) = lost.get_mut(passed.core) else {
            continue;
        };
        let mail = ServerMail::Packet {
            door,
            address,
            data: passed.packet.to_vec(),
            from: passed.from,
            to_ip: passed.to_ip,
            lost_before: *lost,
        };
        // If there is no room the packet is dropped, as by a socket: that one core is busy is no
        // reason for the others to wait.
        let sent = giver.mailboxes.of(passed.core).send(CoreMail::Server(mail));
        *lost = sent.map_or(*lost + 1, |()| 0);
    }
}

/// Starts successors of this process on request.
#[derive(Debug)]
pub(crate) struct Successors {
    program: PathBuf,
    running: Mutex<Option<Child>>,
}

impl Successors {
    /// Successors of this process: the program at its path, which may be another version by then,
    /// with the same arguments.
    ///
    /// # Errors
    /// If the path is not known.
    pub(crate) fn of_this_process() -> io::Result<Successors> {
        Ok(Successors {
            program: std::env::current_exe()?,
            running: Mutex::new(None),
        })
    }

    /// Starts a successor, unless one that was started still runs.
    pub(crate) fn start(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = &mut *running {
            match child.try_wait() {
                Ok(None) => return tracing::warn!(pid = child.id(), "a successor is on its way"),
                Ok(Some(status)) => tracing::warn!(%status, "the successor before has ended"),
                Err(error) => tracing::warn!(%error, "the successor before"),
            }
        }
        let mut command = Command::new(&self.program);
        command.args(std::env::args_os().skip(1));
        // This is for the present process: the successor would not recognise itself.
        command.env_remove("WATCHDOG_PID");
        match command.spawn() {
            Ok(child) => {
                let program = self.program.display();
                tracing::info!(pid = child.id(), %program, "a successor was started");
                *running = Some(child);
            }
            Err(error) => tracing::error!(
                program = %self.program.display(), %error,
                "no successor can be started; this process goes on"
            ),
        }
    }
}
