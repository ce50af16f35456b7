//! The server role: listeners with their clients, visitors and drain.

mod lane;
mod registry;
mod udp_flow;
mod udp_traffic;
mod visitor;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use qmux_config::{ListenerProtocol, LoadBalancer, Server, Udp};
use qmux_proto::control::INSTANCE_ID_BYTES;
use qmux_udp::BatchSocket;
use quinn::Endpoint;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use crate::control::Timing;
use crate::endpoint::{self, QuicServer};
use crate::flows::FlowCount;
use crate::shutdown::Shutdown;
use crate::start_error::StartError;
use crate::tls;
use crate::transport::Settings;
use registry::Registry;

/// Connections that the kernel has accepted and this program has not.
const TCP_BACKLOG: i32 = 4_096;

/// How long closed connections may take to tell their peers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What every task of the server knows.
#[derive(Debug)]
struct Shared {
    instance_id: [u8; INSTANCE_ID_BYTES],
    settings: Settings,
    timing: Timing,
    drain_timeout: Duration,
    udp: Udp,
    /// TCP flows of all listeners: those that draining waits for.
    tcp_flows: Arc<FlowCount>,
    shutdown: Shutdown,
}

/// What every task of one listener knows.
#[derive(Debug)]
struct Listener {
    shared: Arc<Shared>,
    registry: Registry,
    /// The socket of UDP visitors, if it takes any.
    udp: Option<Arc<BatchSocket>>,
}

/// The sockets of a listener.
struct BoundListener {
    quic: UdpSocket,
    tcp: Option<TcpListener>,
    udp: Option<UdpSocket>,
    quic_addr: SocketAddr,
    traffic_addr: SocketAddr,
    protocol: ListenerProtocol,
}

/// The server with every address bound, before it runs.
pub(crate) struct Bound {
    config: Server,
    udp: Udp,
    settings: Settings,
    quic: QuicServer,
    listeners: Vec<BoundListener>,
}

impl Bound {
    pub(crate) fn bind(config: &Server, udp: &Udp, settings: Settings) -> Result<Self, StartError> {
        let private_key = tls::server_key(config)?;
        let quic = QuicServer::new(tls::server(config)?, private_key.secret_der(), &settings);
        let listeners = config.listeners();
        if listeners.len() != config.doors.len() || !config.clients.is_empty() {
            return Err(StartError::NamedServices);
        }
        let listeners = listeners
            .iter()
            .map(|listener| BoundListener::bind(listener, &settings))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            config: config.clone(),
            udp: udp.clone(),
            settings,
            quic,
            listeners,
        })
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for listener in &self.listeners {
            let (quic, traffic) = (listener.quic_addr, listener.traffic_addr);
            let protocol = protocol_name(listener.protocol);
            // Writing to a String cannot fail.
            let _ok = writeln!(text, "server: {protocol} {traffic}, clients at {quic}");
        }
        text
    }

    /// Runs until a signal stops the process and the flows have ended.
    pub(crate) async fn run(self, shutdown: Shutdown) -> io::Result<()> {
        let shared = Arc::new(Shared {
            instance_id: rand::random(),
            settings: self.settings,
            timing: Timing {
                heartbeat_interval: self.config.heartbeat_interval,
                health_timeout: self.config.health_timeout,
            },
            drain_timeout: self.config.drain_timeout,
            udp: self.udp,
            tcp_flows: Arc::default(),
            shutdown: shutdown.clone(),
        });
        let mut running = Running::default();
        for listener in self.listeners {
            let load_balancer = self.config.load_balancer;
            running.start(listener, &self.quic, &shared, load_balancer)?;
        }
        info!(listeners = running.endpoints.len(), "server ready");
        running.until_stopped(&shared, shutdown).await
    }
}

impl BoundListener {
    fn bind(config: &qmux_config::Listener, settings: &Settings) -> Result<Self, StartError> {
        let failed = |key, address, socket| {
            move |source| StartError::Bind {
                key,
                address,
                socket,
                source,
            }
        };
        let (quic_addr, traffic_addr) = (config.quic_addr, config.traffic_addr);
        let quic =
            endpoint::bind(quic_addr, settings).map_err(failed("quic_addr", quic_addr, "UDP"))?;
        let tcp = config.protocol.tcp().then(|| bind_tcp(traffic_addr));
        let udp = config
            .protocol
            .udp()
            .then(|| endpoint::bind(traffic_addr, settings));
        Ok(Self {
            quic,
            tcp: tcp
                .transpose()
                .map_err(failed("traffic_addr", traffic_addr, "TCP"))?,
            udp: udp
                .transpose()
                .map_err(failed("traffic_addr", traffic_addr, "UDP"))?,
            quic_addr,
            traffic_addr,
            protocol: config.protocol,
        })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

fn protocol_name(protocol: ListenerProtocol) -> &'static str {
    match protocol {
        ListenerProtocol::Tcp => "tcp",
        ListenerProtocol::Udp => "udp",
        ListenerProtocol::Both => "tcp+udp",
    }
}

/// The listeners at work.
#[derive(Default)]
struct Running {
    endpoints: Vec<(Endpoint, Arc<Listener>)>,
    /// Tasks that accept visitors. They end when draining starts.
    accepting: JoinSet<io::Result<()>>,
    /// Tasks that go on while flows do.
    carrying: JoinSet<io::Result<()>>,
}

impl Running {
    fn start(
        &mut self,
        listener: BoundListener,
        quic: &QuicServer,
        shared: &Arc<Shared>,
        load_balancer: LoadBalancer,
    ) -> io::Result<()> {
        info!(
            quic_addr = %listener.quic_addr,
            traffic_addr = %listener.traffic_addr,
            protocol = protocol_name(listener.protocol),
            "listening"
        );
        let endpoint = endpoint::server(listener.quic, quic, &shared.settings)?;
        let udp = listener
            .udp
            .map(BatchSocket::new)
            .transpose()?
            .map(Arc::new);
        let tcp = listener
            .tcp
            .map(tokio::net::TcpListener::from_std)
            .transpose()?;
        let listener = Arc::new(Listener {
            shared: Arc::clone(shared),
            registry: Registry::new(load_balancer),
            udp: udp.clone(),
        });
        self.carrying
            .spawn(lane::accept(endpoint.clone(), Arc::clone(&listener)));
        if let Some(tcp) = tcp {
            self.accepting
                .spawn(visitor::accept(tcp, Arc::clone(&listener)));
        }
        if let Some(udp) = udp {
            self.carrying
                .spawn(udp_traffic::carry(udp, Arc::clone(&listener)));
        }
        self.endpoints.push((endpoint, listener));
        Ok(())
    }

    async fn until_stopped(mut self, shared: &Shared, mut shutdown: Shutdown) -> io::Result<()> {
        tokio::select! {
            () = shutdown.started() => {}
            Some(ended) = self.accepting.join_next() => ended??,
            Some(ended) = self.carrying.join_next() => ended??,
        }
        self.accepting.shutdown().await;
        for (endpoint, listener) in &self.endpoints {
            // New lanes are refused from now on.
            endpoint.set_server_config(None);
            listener.registry.drain(shared.drain_timeout);
        }
        let error = shared.tcp_flows.drain(shared.drain_timeout).await;
        for (_, listener) in &self.endpoints {
            listener.registry.close(error);
        }
        self.carrying.shutdown().await;
        let all_closed = async {
            for (endpoint, _) in &self.endpoints {
                endpoint.wait_idle().await;
            }
            shared.tcp_flows.drained(CLOSE_TIMEOUT).await;
        };
        // Who has not heard of it by then will find out by its idle timeout.
        let _in_time = timeout(CLOSE_TIMEOUT, all_closed).await;
        info!("server stopped");
        Ok(())
    }
}
