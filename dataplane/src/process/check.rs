//! `--check`: everything that can be validated without serving anybody.

use std::io::Write;

use qmux_config::{AdminListen, Config, ServerAuth};

use crate::client::ClientShared;
use crate::process::exit::Failure;
use crate::quic::{sessions, settings, tls};
use crate::ready::Readiness;

/// Refuses what a config may hold and this program does not serve.
///
/// # Errors
/// The first key of that kind.
pub(crate) fn served(config: &Config) -> Result<(), Failure> {
    let server = config.server.as_ref();
    let client = config.client.as_ref();
    let one_nameless = |client: &qmux_config::Client| matches!(&client.services[..], [service] if service.name.is_empty());
    let key = if server.is_some_and(|it| it.listeners().len() != it.doors.len()) {
        "server.services"
    } else if server.is_some_and(|it| !it.clients.is_empty()) {
        "server.clients"
    } else if client.is_some_and(|it| !one_nameless(it)) {
        "client.services"
    } else {
        return Ok(());
    };
    let path = config.path.display();
    Err(Failure::Input(format!(
        "{path}: {key}: is not served by this version; it must be left out"
    )))
}

/// Builds what a start would build, short of running it.
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
        let tls = tls::client(client).map_err(|error| input(&error))?;
        settings::transport(&config.quic, tls).map_err(|error| input(&error))?;
    }
    Ok(())
}

/// Validates and prints what would run.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn run(config: Config, cores: usize) -> Result<(), Failure> {
    tls_contexts(&config)?;
    let config = std::sync::Arc::new(config);
    let mut out = std::io::stdout().lock();
    let mut say = |line: String| {
        // A closed standard output is no reason to call a good config bad.
        let _closed = writeln!(out, "{line}");
    };
    if let Some(server) = &config.server {
        let auth = match &server.auth {
            ServerAuth::Mtls { ca_cert } => format!("mtls, CA {ca_cert}"),
            ServerAuth::Token { .. } => "token".into(),
        };
        say(format!(
            "server: {cores} cores, {}, clients authenticate by {auth}",
            server.load_balancer
        ));
        for listener in server.listeners() {
            crate::process::bind::probe(&listener)?;
            say(format!(
                "  clients at {} (QUIC), visitors at {} ({})",
                listener.quic_addr, listener.traffic_addr, listener.protocol
            ));
        }
    }
    if let Some(client) = &config.client {
        let shared = ClientShared::new(&config, client, &std::sync::Arc::new(Readiness::new(1)));
        say(format!(
            "client: {cores} cores, lanes {}, service {}",
            client.lanes, shared.service
        ));
        if let Some(dir) = &client.state_dir {
            let danger = sessions::probe_dir(dir).map_err(Failure::Input)?;
            say(format!("  session tickets in {}", dir.display()));
            if let Some(danger) = danger {
                say(format!("    warning: {danger}"));
            }
        }
        for server in &shared.targets {
            server.name.refresh();
            let addresses = server.name.addresses();
            if addresses.is_empty() {
                return Err(Failure::Input(format!(
                    "server address {} cannot be resolved",
                    server.name
                )));
            }
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            say(format!(
                "  server {} ({}), certificate for {}",
                server.name,
                addresses.join(", "),
                server.server_name
            ));
        }
        if !shared.service.refresh() {
            return Err(Failure::Input(format!(
                "local service {} cannot be resolved",
                shared.service
            )));
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
