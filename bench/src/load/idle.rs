//! Many flows that are open at a time and do next to nothing.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::ping_pong;
use super::wire::{Command, MESSAGE_BYTES};

/// TCP flows that are opened at a time.
const OPENING_MAX: usize = 64;

/// How long one flow may take to open or to answer.
const FLOW_LIMIT: Duration = Duration::from_secs(20);

/// How often a UDP answer is asked for.
const UDP_TRIES_MAX: usize = 6;

/// Flows that stay open until they are dropped.
#[derive(Debug)]
pub enum Flows {
    /// TCP connections.
    Tcp(TcpFlows),
    /// Sockets, each a source of its own.
    Udp(Vec<ping_pong::Udp>),
}

/// TCP connections and the runtime that they live on.
#[derive(Debug)]
pub struct TcpFlows {
    runtime: Runtime,
    streams: Vec<TcpStream>,
}

impl Flows {
    /// Opens TCP flows; each has echoed a byte, so that it is open to its end.
    pub fn open_tcp(visit: SocketAddr, count: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let streams = runtime.block_on(open_all(visit, count))?;
        Ok(Self::Tcp(TcpFlows { runtime, streams }))
    }

    /// Opens UDP flows; each has had a packet echoed.
    pub fn open_udp(visit: SocketAddr, count: usize) -> io::Result<Self> {
        let mut visitors = Vec::with_capacity(count);
        for _ in 0..count {
            let mut visitor = ping_pong::Udp::open(visit)?;
            echo_packet(&mut visitor)?;
            visitors.push(visitor);
        }
        Ok(Self::Udp(visitors))
    }

    /// Has small messages echoed, by one flow after the other, at this rate over all flows or as
    /// near to it as one answer after the other allows. Returns how many.
    pub fn chatter(&mut self, per_second: u32, duration: Duration) -> io::Result<u32> {
        let start = Instant::now();
        let mut messages = 0;
        let wait = |messages: u32| {
            let due = start + Duration::from_secs(1) * messages / per_second;
            due.saturating_duration_since(Instant::now())
        };
        match self {
            Self::Tcp(TcpFlows { runtime, streams }) => runtime.block_on(async {
                while start.elapsed() < duration {
                    // Nothing else runs here, and timers of tokio are a millisecond coarse.
                    std::thread::sleep(wait(messages));
                    let index = messages as usize % streams.len();
                    echo_message(&mut streams[index]).await?;
                    messages += 1;
                }
                Ok(messages)
            }),
            Self::Udp(visitors) => {
                while start.elapsed() < duration {
                    std::thread::sleep(wait(messages));
                    let index = messages as usize % visitors.len();
                    echo_packet(&mut visitors[index])?;
                    messages += 1;
                }
                Ok(messages)
            }
        }
    }
}

async fn open_all(visit: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut opening = JoinSet::new();
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        if opening.len() >= OPENING_MAX {
            take_opened(&mut opening, &mut streams).await?;
        }
        opening.spawn(async move {
            tokio::time::timeout(FLOW_LIMIT, open(visit))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        });
    }
    while !opening.is_empty() {
        take_opened(&mut opening, &mut streams).await?;
    }
    Ok(streams)
}

async fn take_opened(
    opening: &mut JoinSet<io::Result<TcpStream>>,
    streams: &mut Vec<TcpStream>,
) -> io::Result<()> {
    if let Some(opened) = opening.join_next().await {
        streams.push(opened.map_err(io::Error::other)??);
    }
    Ok(())
}

async fn open(visit: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(visit).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[Command::Echo.byte(), 1]).await?;
    stream.read_u8().await?;
    Ok(stream)
}

async fn echo_message(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0; MESSAGE_BYTES];
    stream.write_all(&[0x5a; MESSAGE_BYTES]).await?;
    tokio::time::timeout(FLOW_LIMIT, stream.read_exact(&mut answer))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(())
}

fn echo_packet(visitor: &mut ping_pong::Udp) -> io::Result<()> {
    for _ in 0..UDP_TRIES_MAX {
        // One that is lost is the right of a UDP packet.
        if visitor.round_trip()?.is_some() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::place::Place;
    use crate::load::service::Service;

    #[test]
    fn tcp_flows_stay_open_and_talk() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let mut flows = Flows::open_tcp(service.address, 100).expect("open");
        let messages = flows.chatter(1_000, Duration::from_millis(100));
        assert!(messages.expect("answers") > 0);
    }

    #[test]
    fn udp_flows_talk() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let mut flows = Flows::open_udp(service.address, 20).expect("open");
        let messages = flows.chatter(1_000, Duration::from_millis(50));
        assert!(messages.expect("answers") > 0);
    }
}
