//! The predecessor's part: it listens for a successor, lends its sockets, and gives up reading them
//! when it is told to.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use sd_notify::NotifyState;
use socket2::{Domain, Socket, Type};

use super::messages::{
    self, ENDING, GONE, Hello, MESSAGE_BYTES_MAX, Offer, PACKETS, TAKE, VERSION,
};
use crate::core::mailbox::Mailboxes;
use crate::process::admin::socket::{bind_unix, check_place};
use crate::process::exit::Failure;
use crate::process::mail::CoreMail;
use crate::server::ServerShared;
use crate::server::ids::DoorId;
use crate::server::mail::ServerMail;
use crate::server::succession::{Lent, PASSED_ON_HEAD_BYTES, PassedOn};
use crate::sys::pass;

const KEY: &str = "server.handover";

/// How long a successor may take between two messages. It reads its configuration before it comes,
/// and binds what is new in between.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the cores may take.
const CORES_PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a core with a full mailbox is told again.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// Pause after accept(2) failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What waits of passed-on packets: some milliseconds at a gigabit per second.
const PACKETS_BUFFER_BYTES: usize = 4 << 20;

/// Largest packet that is passed on: what a receive call may bring.
const PACKET_BYTES_MAX: usize = 1 << 16;

/// Who gives the sockets away.
pub(crate) struct Giver {
    pub(crate) cores: usize,
    pub(crate) server: Arc<ServerShared>,
    pub(in crate::process) mailboxes: Mailboxes<CoreMail>,
    /// Whether this process is about to end.
    pub(crate) is_draining: Box<dyn Fn() -> bool + Send>,
    /// Gives up the admin endpoint's address.
    pub(crate) close_admin: Box<dyn Fn() + Send>,
    /// Told once, with the successor's process id, when it serves.
    pub(crate) handed_over: Box<dyn Fn(u32) + Send>,
}

impl Giver {
    /// Listens at `path` from now on, on a thread of its own.
    ///
    /// # Errors
    /// If that cannot be.
    pub(crate) fn start(self, path: &Path) -> Result<(), Failure> {
        check_place(path, KEY)?;
        let listener = bind_unix(path, Type::SEQPACKET).map_err(|error| {
            Failure::Input(format!(
                "{KEY}: cannot bind unix:{}: {error}; its directory must be there, and writable for \
                 this user",
                path.display()
            ))
        })?;
        let thread = std::thread::Builder::new().name("handover".into());
        let started = listener
            .set_nonblocking(false)
            .and_then(|()| thread.spawn(move || self.listen(listener)));
        let failed = |error| Failure::Running(format!("thread of the handover: {error}"));
        started.map(drop).map_err(failed)
    }

    fn listen(self, listener: Socket) {
        loop {
            match listener.accept() {
                Ok((connection, _)) => match self.lend(&connection) {
                    Ok(Some(packets)) => {
                        // The successor listens there for its own.
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

    /// Lends the sockets. What comes back is where packets of this process's lanes will come from;
    /// nothing if the successor was refused.
    fn lend(&self, connection: &Socket) -> io::Result<Option<Socket>> {
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let hello: Hello = serde_json::from_slice(&next(connection)?)?;
        if let Some(why) = self.refusal(&hello) {
            tracing::warn!(why, "a successor is refused");
            pass::send(connection, &messages::text(&Offer::Refused(why)), None)?;
            return Ok(None);
        }
        let (told, lent) = bounded(self.cores);
        self.tell(|| ServerMail::Lend(told.clone()));
        drop(told);
        let lent: Vec<Lent> = all(&lent, self.cores)?.into_iter().flatten().collect();
        let offer = Offer::Sockets(lent.len());
        pass::send(connection, &messages::text(&offer), None)?;
        for socket in &lent {
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
        // Less than that is enough as well.
        let _smaller = theirs.set_send_buffer_size(PACKETS_BUFFER_BYTES);
        pass::send(connection, PACKETS, Some(theirs.as_fd()))?;
        drop((lent, theirs));
        if next(connection)? != TAKE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if (self.is_draining)() {
            // Its sockets have begun to close.
            pass::send(connection, ENDING, None)?;
            return Ok(None);
        }
        Ok(Some(ours))
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

    /// The successor has all that it needs: from here on it serves.
    fn give_up(&self, connection: &Socket) {
        let (done, answers) = bounded(self.cores);
        self.tell(|| ServerMail::HandedOver(done.clone()));
        drop(done);
        if all(&answers, self.cores).is_err() {
            tracing::error!("a core is stuck, and may still read what is for the successor");
        }
        (self.close_admin)();
        let credentials = rustix::net::sockopt::socket_peercred(connection);
        let pid = credentials.map_or(0, |it| it.pid.as_raw_nonzero().get());
        let pid = u32::try_from(pid).unwrap_or_default();
        // Before the successor says that it is ready: only the main process is believed.
        let _no_manager = sd_notify::notify(&[NotifyState::MainPid(pid)]);
        if let Err(error) = pass::send(connection, GONE, None) {
            tracing::warn!(%error, "the successor does not hear that it may begin");
        }
        (self.handed_over)(pid);
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

fn next(connection: &Socket) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let received = pass::receive(connection, &mut bytes)?;
    let (length, _fd) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// One answer of each core.
fn all<T>(answers: &Receiver<T>, cores: usize) -> io::Result<Vec<T>> {
    let until = Instant::now() + CORES_PATIENCE;
    let answer = |_| answers.recv_deadline(until).map_err(io::Error::other);
    (0..cores).map(answer).collect()
}

/// Gives the cores what the successor passes on, until it or this process ends.
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
        // Without room it is dropped, as a socket does: that one core is busy is no reason for the
        // others to wait.
        let sent = giver.mailboxes.of(passed.core).send(CoreMail::Server(mail));
        *lost = sent.map_or(*lost + 1, |()| 0);
    }
}

/// Starts successors of this process when somebody asks for one.
#[derive(Debug)]
pub(crate) struct Successors {
    program: PathBuf,
    running: Mutex<Option<Child>>,
}

impl Successors {
    /// Of this process: the program at its path, which may be another one by then, with the same
    /// arguments.
    ///
    /// # Errors
    /// If the path is not known.
    pub(crate) fn of_this_process() -> io::Result<Successors> {
        Ok(Successors {
            program: std::env::current_exe()?,
            running: Mutex::new(None),
        })
    }

    /// Starts one, unless one has been started that still runs.
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
        // That of this process: the successor would take itself for somebody else.
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
