//! The service behind the tunnel: TCP and UDP on one port, doing what each visitor asks for.

use anyhow::{Context as _, Result, anyhow};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::udp_sink::UdpSink;
use super::wire::{self, Command};
use crate::harness::cpus;
use crate::harness::place::{Place, enter_namespace};

/// Connections that may wait to be accepted, so that a burst of visitors is not turned away here.
/// The system's own limit (`net.core.somaxconn`) is 4,096 by default.
const BACKLOG: u32 = 4_096;

/// Bytes that an echo reads at a time.
const ECHO_BUFFER_BYTES: usize = 4_096;

pub(crate) const GREETING: u8 = b'!';

/// What the service counts and how it behaves, shared with its connections.
#[derive(Debug, Default)]
struct Shared {
    discarded_bytes: AtomicU64,
    /// Connections of bulk whose command has arrived.
    bulk_begun: AtomicUsize,
    greets: AtomicBool,
    /// For threads that move bulk: they go wherever there is room.
    all_cpus: Vec<usize>,
}

/// A service that runs. It ends, with all of its connections, when dropped.
#[derive(Debug)]
pub struct Service {
    /// The address at which the service listens.
    pub address: SocketAddr,
    pub(crate) udp: UdpSink,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl Service {
    /// Starts the service on the far side. The threads that answer small messages stay on these
    /// CPUs, if any.
    pub fn start(place: &Place, cpus: &[usize]) -> Result<Self> {
        let shared = Arc::new(Shared {
            all_cpus: cpus::allowed(),
            ..Shared::default()
        });
        let cpus = cpus.to_vec();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let (ip, namespace) = (place.service_ip, place.far_namespace.clone());
        let for_thread = Arc::clone(&shared);
        let start = move || {
            cpus::keep_to(&cpus);
            if let Some(namespace) = &namespace {
                enter_namespace(namespace)?;
            }
            let address = qmux_harness::ports::free(ip)?;
            let udp = UdpSink::start(address)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .context("the service's runtime")?;
            let listener = {
                let _context = runtime.enter();
                listen(address).context("the service's listener")?
            };
            anyhow::Ok((address, udp, runtime, listener))
        };
        thread::spawn(move || match start() {
            Ok((address, udp, runtime, listener)) => {
                let _ = tell.send(Ok((address, udp)));
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, for_thread) => {}
                        _dropped = stopped => {}
                    }
                });
            }
            Err(error) => drop(tell.send(Err(error))),
        });
        let gone = |_| anyhow!("the service's thread has panicked");
        let (address, udp) = told.recv().map_err(gone)??;
        Ok(Self {
            address,
            udp,
            shared,
            _stop: stop,
        })
    }

    pub(crate) fn discarded_bytes(&self) -> u64 {
        self.shared.discarded_bytes.load(Ordering::Relaxed)
    }

    /// Connections of bulk that have begun so far.
    pub(crate) fn bulk_begun(&self) -> usize {
        self.shared.bulk_begun.load(Ordering::Relaxed)
    }

    /// Whether it writes [`GREETING`] to each new connection without being asked.
    pub(crate) fn set_greets(&self, greets: bool) {
        self.shared.greets.store(greets, Ordering::Relaxed);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // An error concerns the connection that was to be accepted, or the limit of open files,
        // which visitors notice.
        if let Ok((stream, _visitor)) = listener.accept().await {
            let shared = Arc::clone(&shared);
            // How a visitor ends is the visitor's business.
            tokio::spawn(async move { drop(serve(stream, &shared).await) });
        } else {
            tokio::task::yield_now().await;
        }
    }
}

async fn serve(mut stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if shared.greets.load(Ordering::Relaxed) {
        stream.write_all(&[GREETING]).await?;
    }
    let command = stream.read_u8().await?;
    match Command::of(command) {
        Some(Command::Echo) => echo(stream).await,
        Some(command) => {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            let shared = Arc::clone(shared);
            thread::spawn(move || {
                if command != Command::PingPong {
                    cpus::keep_to(&shared.all_cpus);
                }
                if matches!(command, Command::Discard | Command::Source) {
                    shared.bulk_begun.fetch_add(1, Ordering::Relaxed);
                }
                match command {
                    Command::Discard => wire::read_bulk(stream, &shared.discarded_bytes),
                    Command::Source => wire::write_bulk(stream),
                    Command::PingPong | Command::Echo => ping_pong(stream),
                }
            });
            Ok(())
        }
        None => Ok(()),
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    loop {
        // An idle connection holds no buffer: there may be ten thousand.
        stream.readable().await?;
        let mut buffer = [0; ECHO_BUFFER_BYTES];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => stream.write_all(&buffer[..read]).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn ping_pong(mut stream: Blocking) -> io::Result<()> {
    let mut buffer = [0; ECHO_BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}
