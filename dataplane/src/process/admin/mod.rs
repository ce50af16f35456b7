//! The admin endpoint: health, readiness, metrics and status over HTTP, on a thread of its own.
//!
//! It reads what the cores share and never asks a core anything. So it answers when a core is
//! stuck, and costs none of them anything. It keeps answering while the process drains, to its end.
//!
//! It does not authenticate anybody. What a peer can cost is bounded: connections (the oldest makes
//! way for the newest, so that slow ones keep nobody out), bytes of a request's head, and time.

mod answer;
mod exposition;
mod measurements;
mod query;
mod service_metrics;
mod services;
pub(super) mod socket;
mod status_json;

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use qmux_config::Admin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;

use crate::core::log_limit::LogLimit;
use crate::process::reload;
use crate::process::status::Status;

use answer::ReachedBy;
pub(crate) use socket::{AdminSocket, bind, probe};

/// Connections at a time. There are few scrapers and health checks; a hundred more in parallel are
/// still served.
const CONNECTIONS_MAX: usize = 256;

/// Time for a request's head to come, also on a connection that waits for its next request.
/// Scrapers that keep a connection for longer open another one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection takes no further request when it is this old, and then has as long as a head may
/// take to end.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);

/// Bytes of a request's head. Usual ones have about a hundred; proxies in front add some hundred
/// more.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Pause after accept(2) has failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Orders that the endpoint can give to the process.
pub(crate) struct Orders {
    /// Stops the process as SIGTERM does. A second call does nothing more.
    pub(crate) drain: Box<dyn Fn() + Send + Sync>,
    /// Orders to the process to read its configuration again.
    pub(crate) reload: reload::Orders,
}

/// The sources of the answers.
struct Sources {
    status: Arc<Status>,
    orders: Orders,
}

/// The socket in the form that the endpoint's runtime needs.
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// One connection.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listening {
    fn new(socket: AdminSocket) -> io::Result<Listening> {
        Ok(match socket {
            AdminSocket::Tcp(socket) => Listening::Tcp(TcpListener::from_std(socket)?),
            AdminSocket::Unix(socket) => Listening::Unix(UnixListener::from_std(socket)?),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Listening::Tcp(socket) => Accepted::Tcp(socket.accept().await?.0),
            Listening::Unix(socket) => Accepted::Unix(socket.accept().await?.0),
        })
    }
}

/// Starts the endpoint's thread, which ends with the process.
///
/// # Errors
/// If the thread or its runtime cannot be started.
pub(crate) fn start(
    socket: AdminSocket,
    admin: &Admin,
    status: Arc<Status>,
    orders: Orders,
) -> io::Result<Closer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let listening = {
        let _inside = runtime.enter();
        Listening::new(socket)?
    };
    let sources = Arc::new(Sources { status, orders });
    let accepts = runtime.spawn(accept(listening, sources));
    let closer = Closer(accepts.abort_handle());
    std::thread::Builder::new()
        .name("admin".into())
        // Open connections are served to their end.
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    // Its paths are not in this line: a line with the word `ready` says that the process serves.
    tracing::info!(address = %admin.listen, "the admin endpoint listens");
    Ok(closer)
}

/// Gives up the endpoint's address.
#[derive(Debug)]
pub(crate) struct Closer(AbortHandle);

impl Closer {
    /// Stops accepting new connections, from some moment soon on.
    pub(crate) fn close(&self) {
        self.0.abort();
    }
}

async fn accept(listening: Listening, sources: Arc<Sources>) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    let log = LogLimit::new(Instant::now());
    loop {
        let accepted = match listening.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(suppressed) = log.pass(Instant::now()) {
                    tracing::warn!(%error, suppressed, "the admin endpoint cannot accept a connection; trying again");
                }
                // The connections of this endpoint may be what the process has too many of.
                make_room(&mut connections, 1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        make_room(&mut connections, CONNECTIONS_MAX);
        let sources = Arc::clone(&sources);
        let task = match accepted {
            Accepted::Tcp(stream) => tokio::spawn(serve(stream, ReachedBy::Tcp, sources)),
            Accepted::Unix(stream) => tokio::spawn(serve(stream, ReachedBy::Unix, sources)),
        };
        connections.push_back(task.abort_handle());
    }
}

/// Ends the oldest connection if there are `most` or more.
fn make_room(connections: &mut VecDeque<AbortHandle>, most: usize) {
    if connections.len() >= most {
        connections.retain(|connection| !connection.is_finished());
    }
    if connections.len() >= most
        && let Some(oldest) = connections.pop_front()
    {
        oldest.abort();
    }
}

/// Serves one connection until its end, which a mistake or delay of its peer brings about, too.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, way: ReachedBy, sources: Arc<Sources>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let sources = Arc::clone(&sources);
        async move {
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            let response = match answer::to(&sources, way, method, uri, headers) {
                answer::Answer::Now(response) => response,
                answer::Answer::Later(outcome) => answer::of_reload(outcome.await),
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let within = tokio::time::timeout(CONNECTION_AGE_MAX, connection.as_mut());
    if within.await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _cut_off = tokio::time::timeout(HEAD_TIMEOUT, connection).await;
    }
}
