//! A tunnel under test: its programs, where visitors go, what its programs tell at their end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use qmux_harness::{Error, Launch, Program, Where, counters, ports, says_ready};
use serde::Serialize;

use super::cpus::{self, Layout};
use super::meter::{Metered, Role};
use super::place::Place;
use super::site::{self, Addresses, Overrides, Site};
use super::spec::Spec;
use super::{callgrind, rathole};

/// How long a program may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How long a program may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(4);

/// Starts on other ports before a clash of ports counts as a failure.
const STARTS_MAX: usize = 4;

/// Warnings and errors of one program that are kept.
const COMPLAINTS_MAX: usize = 20;

/// Which CPUs server and client get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Different ones where there are enough: they would be on different machines. Else as the
    /// programs want it.
    #[default]
    Apart,
    /// As the programs want it.
    Free,
}

/// How tunnels are set up.
#[derive(Debug)]
pub struct Setup {
    pub(crate) programs: PathBuf,
    pub(crate) place: Place,
    /// The CPUs that server and client get.
    pub placement: Placement,
    /// Settings that both sides get beside what the tunnel needs.
    pub overrides: Overrides,
    pub(crate) site: Site,
    /// Whether qmux-dp's server is to have an admin endpoint, to be asked while it runs.
    pub admin: bool,
    /// Whether the programs run under valgrind, so that their instructions can be counted.
    pub(crate) by_instructions: bool,
}

impl Setup {
    /// With programs that are where this one is unless they are named, on any CPUs, with an admin
    /// endpoint: for what is no comparison.
    pub fn new(programs: Option<&PathBuf>, place: Place) -> Result<Self> {
        Ok(Self {
            programs: programs.map_or_else(qmux_harness::own_directory, Clone::clone),
            place,
            placement: Placement::Free,
            overrides: Overrides::default(),
            site: Site::new()?,
            admin: true,
            by_instructions: false,
        })
    }

    pub(crate) fn layout(&self, cores: usize) -> Layout {
        match self.placement {
            Placement::Apart => Layout::apart(&cpus::allowed(), cores),
            Placement::Free => Layout::default(),
        }
    }
}

/// A tunnel that is up, or none at all.
#[derive(Debug)]
pub struct Tunnel {
    /// The address to which visitors connect.
    pub visit: SocketAddr,
    /// The server's admin endpoint, if it has one.
    pub(crate) admin: Option<SocketAddr>,
    // In this order: the client ends first, so that the server does not wait for it.
    client: Option<Program>,
    server: Option<Program>,
}

/// What a tunnel's programs told at their end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Farewell {
    /// Counters of the server, added up over its cores.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) server_counters: BTreeMap<String, u64>,
    /// The same of the client.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) client_counters: BTreeMap<String, u64>,
    /// Warnings and errors, and that a program had to be killed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) complaints: Vec<String>,
}

impl Tunnel {
    /// Sets a tunnel up to this service and waits until both of its sides say that they are ready.
    pub fn start(spec: &Spec, setup: &Setup, cores: usize, service: SocketAddr) -> Result<Self> {
        if spec.kind.is_raw() {
            return Ok(Self {
                visit: service,
                admin: None,
                client: None,
                server: None,
            });
        }
        let is_clash = |error: &anyhow::Error| match error.downcast_ref() {
            Some(Error::Ended { log, .. }) => log.contains("in use"),
            _ => false,
        };
        for _ in 1..STARTS_MAX {
            match Self::start_once(spec, setup, cores, service) {
                Err(error) if is_clash(&error) => {}
                result => return result,
            }
        }
        Self::start_once(spec, setup, cores, service)
    }

    fn start_once(spec: &Spec, setup: &Setup, cores: usize, service: SocketAddr) -> Result<Self> {
        let has_admin = setup.admin && spec.kind.is_qmux_dp();
        let port = || ports::free(setup.place.server_ip);
        let addresses = Addresses {
            admin: has_admin.then(port).transpose()?,
            quic: port()?,
            traffic: port()?,
            service,
        };
        let [server, client] = launches(spec, setup, cores, &addresses)?;
        let server = server.start()?;
        let client = if spec.kind.is_rathole() {
            // Both write a line once they are connected, each in its own words; a service without
            // one is not served.
            let client = client.start()?;
            let connected = |line: &str| line.contains("Control channel established");
            client.wait_for_line("its connection", READY_LIMIT, connected)?;
            client
        } else {
            server.wait_for_line("readiness", READY_LIMIT, says_ready)?;
            start_client(&client)?
        };
        Ok(Self {
            visit: addresses.traffic,
            admin: addresses.admin,
            client: Some(client),
            server: Some(server),
        })
    }

    /// The processes of the tunnel, to be metered.
    pub fn processes(&self) -> Vec<Metered> {
        let roles = [(Role::Server, &self.server), (Role::Client, &self.client)];
        let programs = roles.into_iter();
        programs
            .filter_map(|(role, program)| Some(Metered::of(role, program.as_ref()?)))
            .collect()
    }

    pub(crate) fn pid(&self, role: Role) -> Option<u32> {
        let process = self.processes().into_iter().find(|it| it.role == role);
        process.map(|it| it.pid)
    }

    /// Starts one more client of the same kind and waits until it is ready. It is killed when it is
    /// dropped.
    pub(crate) fn another_client(&self) -> Result<Program> {
        let client = self.client.as_ref();
        start_client(
            client
                .context("without a tunnel there is no client")?
                .launch(),
        )
    }

    pub(crate) fn stop(mut self) -> Farewell {
        let mut farewell = Farewell::default();
        // Before the end: that one side is gone is no complaint then.
        for (role, program) in [("server", &self.server), ("client", &self.client)] {
            let lines = program.as_ref().map(Program::lines).unwrap_or_default();
            let complains = |line: &&String| line.contains(" WARN ") || line.contains("ERROR");
            let lines = lines.iter().filter(complains).take(COMPLAINTS_MAX);
            let lines = lines.map(|line| format!("{role}: {line}"));
            farewell.complaints.extend(lines);
        }
        farewell.client_counters = farewell.end("client", self.client.as_mut());
        farewell.server_counters = farewell.end("server", self.server.as_mut());
        farewell
    }
}

fn start_client(launch: &Launch) -> Result<Program> {
    let client = launch.start()?;
    client.wait_for_line("readiness", READY_LIMIT, says_ready)?;
    Ok(client)
}

impl Farewell {
    pub(crate) fn sides(&self) -> [(&'static str, &BTreeMap<String, u64>); 2] {
        [
            ("server", &self.server_counters),
            ("client", &self.client_counters),
        ]
    }

    fn end(&mut self, role: &str, program: Option<&mut Program>) -> BTreeMap<String, u64> {
        let Some(program) = program else {
            return BTreeMap::new();
        };
        if !program.terminate(END_LIMIT) {
            let killed = format!("{role}: still ran {END_LIMIT:?} after SIGTERM and was killed");
            self.complaints.push(killed);
        }
        let lines = program.lines();
        counters::totals(&counters::of_cores(lines.iter().map(String::as_str)))
    }
}

/// The settings to try out, with what this kind of tunnel has of its own.
fn overrides(spec: &Spec, setup: &Setup) -> Overrides {
    let mut overrides = setup.overrides.clone();
    if let Some((section, key, value)) = spec.kind.own {
        let mut lines = overrides.of(section);
        let is_set = lines.any(|line| line.trim_start().starts_with(key));
        drop(lines);
        if !is_set {
            overrides.add(section, format!("{key} = \"{value}\""));
        }
    }
    overrides
}

fn launches(
    spec: &Spec,
    setup: &Setup,
    cores: usize,
    addresses: &Addresses,
) -> Result<[Launch; 2]> {
    let program = spec.program(&setup.programs).with_context(|| {
        let (label, programs) = (&spec.label, setup.programs.display());
        format!("{label}: its program is neither in {programs} nor in PATH")
    })?;
    let is_rathole = spec.kind.is_rathole();
    let [server, client] = if is_rathole {
        let keys = spec
            .kind
            .has_noise()
            .then(|| rathole::Keys::generate(&program));
        rathole::configs(addresses, keys.transpose()?.as_ref())
    } else {
        site::configs(addresses, &overrides(spec, setup))
    };
    let launch = |role: &str, config: &str, cpus: Vec<usize>, namespace: Option<String>| {
        let file = setup.site.write(&format!("{role}.toml"), config)?;
        let mut launch = Launch::new(&format!("{}'s {role}", spec.label), &program);
        if setup.by_instructions {
            launch = launch.under(callgrind::wrapping(setup.site.path()));
        }
        if is_rathole {
            launch = launch.words(&format!("--{role}")).args([file]);
        } else {
            launch = launch.args(["--config"]).args([file]);
            launch = launch.words(&format!("--cores {cores}"));
        }
        if spec.kind.is_tuned {
            launch = launch.args(["--tuned"]);
        }
        anyhow::Ok(launch.at(Where { cpus, namespace }))
    };
    let layout = setup.layout(cores);
    let far = setup.place.far_namespace.clone();
    Ok([
        launch("server", &server, layout.server, None)?,
        launch("client", &client, layout.client, far)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        let programs = PathBuf::from("/nowhere");
        Setup::new(Some(&programs), Place::loopback()).expect("a setup")
    }

    #[test]
    fn the_tuned_baseline_has_cubic_unless_told_otherwise() {
        let of = |kind: &str, setup: &Setup| overrides(&kind.parse().expect("a tunnel"), setup);
        let mut setup = setup();
        let list = of("quinn-dp-tuned", &setup).list();
        assert_eq!(list, ["[quic] congestion_control = \"cubic\""]);
        assert!(of("qmux-dp", &setup).list().is_empty());
        setup.overrides.add("quic", "congestion_control = \"reno\"");
        assert_eq!(of("quinn-dp-tuned", &setup), setup.overrides);
    }

    #[test]
    fn raw_is_the_service_itself_and_a_program_that_is_missing_an_error() {
        let setup = setup();
        let service = SocketAddr::from(([127, 0, 0, 1], 9));
        let start = |spec: &str| {
            let spec = spec.parse().expect("a tunnel");
            Tunnel::start(&spec, &setup, 1, service)
        };
        let raw = start("raw").expect("up");
        assert_eq!(raw.visit, service);
        assert!(raw.processes().is_empty());
        assert_eq!(raw.stop(), Farewell::default());
        assert!(start("qmux-dp:/nowhere/qmux-dp").is_err());
    }
}
