//! The admin endpoint: health, readiness and metrics over HTTP, on a thread of its own.
//!
//! It reads what the cores share and never asks a core anything, so that it answers when one is stuck, and costs none of
//! them anything. It keeps answering while the process drains, to its end.
//!
//! Nobody is asked who they are. What a peer can cost is bounded: connections (the oldest makes way for the newest, so
//! that slow ones keep nobody out), bytes of a request's head, and time.

mod answer;
mod exposition;
mod query;
mod service_metrics;
mod services;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::core::log_limit::LogLimit;
use crate::process::status::Status;

/// Connections at a time. Those who scrape and check are few; a hundred more in parallel are still served.
const CONNECTIONS_MAX: usize = 256;

/// Time for a request's head to come, also on a connection that waits for its next request. Scrapers that keep a
/// connection for longer open another.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection takes no further request when it is this old, and then has as long as a head may take to end.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);

/// Bytes of a request's head. Ours have about a hundred; proxies in front add some hundred more.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Pause after accept(2) failed, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Starts the endpoint's thread, which ends with the process.
///
/// # Errors
/// If the thread or its runtime cannot be had.
pub(crate) fn start(listener: TcpListener, status: Arc<Status>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let address = listener.local_addr()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || runtime.block_on(accept(listener, status)))?;
    // Not its paths: a line with the word `ready` says that the process serves.
    tracing::info!(%address, "the admin endpoint listens");
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, status: Arc<Status>) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    let log = LogLimit::new(Instant::now());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(suppressed) = log.pass(Instant::now()) {
                    tracing::warn!(%error, suppressed, "the admin endpoint cannot accept a connection; trying again");
                }
                // Ours may be what the process has too many of.
                make_room(&mut connections, 1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        make_room(&mut connections, CONNECTIONS_MAX);
        let task = tokio::spawn(serve(stream, Arc::clone(&status)));
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

/// Serves one connection until its end, which its peer's mistakes and delays are, too.
async fn serve(stream: TcpStream, status: Arc<Status>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let response = answer::to(&status, request.method(), request.uri(), request.headers());
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
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
