//! `--check`: everything that can be validated without serving anybody.

use std::io::Write;
use std::sync::Arc;

use qmux_config::{
    AccessLog, AdminListen, Client, Config, Proof, Server, ServerAuth, Service, ServicePattern,
};

use crate::client::ClientShared;
use crate::process::exit::Failure;
use crate::process::{access_log, bind};
use crate::quic::{sessions, settings, tls};
use crate::ready::Readiness;
use crate::sys::limits;

/// What would be right in place of a name that nobody knows.
const RESOLVABLE: &str = "it must be an IP address, or a name that this host can resolve (getent \
    hosts NAME)";

/// Builds what a start would build, without running it.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn tls_contexts(config: &Config) -> Result<(), Failure> {
    let input = |error: &dyn std::fmt::Display| Failure::Input(error.to_string());
    if let Some(server) = &config.server {
        let tls = tls::server(server).map_err(|error| input(&error))?;
        settings::transport(&config.quic, tls).map_err(|error| input(&error))?;
    }
    if let Some(client) = &config.client {
        for (index, server) in client.servers.iter().enumerate() {
            let proxy = qmux_config::proxy::of(&server.proxy, &server.host, server.port);
            let key = format!("client.servers[{index}].proxy");
            proxy.map_err(|error| Failure::of_key(key, error))?;
        }
        let tls = tls::client(client).map_err(|error| input(&error))?;
        settings::transport(&config.quic, tls).map_err(|error| input(&error))?;
    }
    Ok(())
}

/// Prints who may come and where, and checks whether the addresses can be bound.
fn check_server(
    server: &Server,
    cores: usize,
    say: &mut impl FnMut(String),
) -> Result<(), Failure> {
    let auth = match &server.auth {
        ServerAuth::Mtls { ca_cert, crl: None } => format!("mtls, CA {ca_cert}"),
        ServerAuth::Mtls {
            ca_cert,
            crl: Some(crl),
        } => format!("mtls, CA {ca_cert}, revoked by {crl}"),
        ServerAuth::Token { token: Some(_) } => "token".into(),
        ServerAuth::Token { token: None } => "tokens of their own".into(),
    };
    say(format!(
        "server: {cores} cores, {}, clients authenticate by {auth}",
        server.load_balancer
    ));
    let allowed = limits::raise_open_files();
    let warning = bind::judge_descriptors(server, cores, allowed)?;
    for door in &server.doors {
        bind::probe(door)?;
        let addresses: Vec<String> = door.quic_addrs.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(", ");
        match &door.services[..] {
            [service] if service.name.is_empty() => say(format!(
                "  clients at {addresses} (QUIC), visitors at {} ({})",
                service.traffic, service.protocol
            )),
            services => {
                say(format!("  clients of named services at {addresses} (QUIC)"));
                for service in services {
                    say(show_service(service));
                }
            }
        }
    }
    for client in &server.clients {
        let services: Vec<String> = client.services.iter().map(show_pattern).collect();
        say(format!(
            "  client {:?}, by its {}, may serve {}",
            client.name,
            match &client.proof {
                Proof::Certificate(name) => format!("certificate {name:?}"),
                Proof::Fingerprint(_) => "certificate's fingerprint".into(),
                Proof::Token(_) => "token".into(),
            },
            services.join(", ")
        ));
    }
    if let Some(path) = &server.handover {
        say(format!("  hands over at unix:{}", path.display()));
    }
    access_log::probe(&server.access_log)?;
    if server.access_log != AccessLog::Off {
        say(format!("  access log: {}", server.access_log));
    }
    say(format!(
        "  sockets take {} file descriptors",
        bind::descriptors(server, cores)
    ));
    if let Some(warning) = warning {
        say(format!("    warning: {warning}"));
    }
    Ok(())
}

/// The pattern in words; the service without a name has a word for people.
fn show_pattern(pattern: &ServicePattern) -> String {
    match pattern.to_string() {
        name if name.is_empty() => "the service without a name".into(),
        name => name,
    }
}

fn show_service(service: &Service) -> String {
    let required = if service.required { ", required" } else { "" };
    format!(
        "    service {:?}: visitors at {} ({}), {}{required}",
        service.name, service.traffic, service.protocol, service.load_balancer
    )
}

/// The key of the host of a service.
fn key_of_host(client: &Client, name: &str) -> String {
    let mut named = client.services.iter().filter(|it| !it.name.is_empty());
    match named.position(|service| service.name == name) {
        Some(index) => format!("client.services[{index}].host"),
        None => "client.local.host".into(),
    }
}

/// Validates the configuration and prints what would run.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn run(config: Config, cores: usize) -> Result<(), Failure> {
    let config = Arc::new(config);
    check(&config, cores).map_err(|failure| failure.located(&config))
}

fn check(config: &Arc<Config>, cores: usize) -> Result<(), Failure> {
    tls_contexts(config)?;
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| {
        // A closed standard output is no reason to call a good configuration bad.
        let _closed = writeln!(out, "{line}");
    };
    if let Some(server) = &config.server {
        check_server(server, cores, &mut say)?;
    }
    if let Some(client) = &config.client {
        let shared = ClientShared::new(config, client, &Arc::new(Readiness::new(1)));
        say(format!(
            "client: {cores} cores, lanes {}, services:",
            client.lanes
        ));
        for service in shared.settings().services.all() {
            say(format!("  {}", service.summary()));
        }
        if let Some(dir) = &client.state_dir {
            let danger = sessions::probe_dir(dir);
            let danger = danger.map_err(|why| Failure::of_key("client.state_dir", why))?;
            say(format!("  session tickets in {}", dir.display()));
            if let Some(danger) = danger {
                say(format!("    warning: {danger}"));
            }
        }
        for (index, server) in shared.targets().iter().enumerate() {
            server.name.refresh();
            let addresses = server.name.addresses();
            if addresses.is_empty() && !server.asks_its_proxy() {
                let why = format!("{} cannot be resolved; {RESOLVABLE}", server.name);
                let key = format!("client.servers[{index}].address");
                return Err(Failure::of_key(key, why));
            }
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let found = if addresses.is_empty() {
                "its proxy is asked for the name, which this host cannot resolve".into()
            } else {
                addresses.join(", ")
            };
            say(format!(
                "  server {} ({found}), certificate for {}",
                server.name, server.server_name
            ));
        }
        for service in shared.settings().services.all() {
            if !service.host.refresh() {
                let why = format!("local service {service} cannot be resolved; {RESOLVABLE}");
                return Err(Failure::of_key(
                    key_of_host(client, &service.local.name),
                    why,
                ));
            }
        }
    }
    if let Some(admin) = &config.admin {
        crate::process::admin::probe(admin)?;
        let shown = match &admin.listen {
            AdminListen::Tcp(address) => format!("http://{address}"),
            unix @ AdminListen::Unix(_) => unix.to_string(),
        };
        say(format!(
            "admin: {shown} (/, /status, /healthz, /readyz, /metrics; POST /drain)"
        ));
    }
    say("config is valid".into());
    Ok(())
}
