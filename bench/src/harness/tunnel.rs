//! A tunnel under test: its programs, where visitors go, what its programs tell at their end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::cpus::{self, Layout};
use super::meter::{Metered, Role};
use super::place::Place;
use super::site::{self, Addresses, Overrides, Site};
use super::spec::{Kind, Spec};
use super::{BenchError, callgrind, rathole};
use qmux_harness::{Launch, Program, Where, counters, ports, says_ready};

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
    /// Where the programs are.
    pub programs: PathBuf,
    /// Where they run.
    pub place: Place,
    /// Which CPUs they get.
    pub placement: Placement,
    /// Settings to try out.
    pub overrides: Overrides,
    /// Their certificates and configs.
    pub site: Site,
    /// Whether qmux-dp's server is to have an admin endpoint, to be asked while it runs.
    pub admin: bool,
    /// Whether the programs run under valgrind, so that their instructions can be counted.
    pub by_instructions: bool,
}

impl Setup {
    /// With programs that are where this one is unless they are named, on any CPUs, with an admin
    /// endpoint: for what is no comparison.
    pub fn new(programs: Option<&PathBuf>, place: Place) -> Result<Self, BenchError> {
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

    /// Who runs where, with so many cores on each side.
    pub fn layout(&self, cores: usize) -> Layout {
        match self.placement {
            Placement::Apart => Layout::apart(&cpus::allowed(), cores),
            Placement::Free => Layout::default(),
        }
    }
}

/// A tunnel that is up, or none at all.
#[derive(Debug)]
pub struct Tunnel {
    /// Where visitors go.
    pub visit: SocketAddr,
    /// The server's admin endpoint, if it has one.
    pub admin: Option<SocketAddr>,
    // In this order: the client ends first, so that the server does not wait for it.
    client: Option<Program>,
    server: Option<Program>,
    client_launch: Option<Launch>,
}

/// What a tunnel's programs told at their end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Farewell {
    /// Counters of the server, added up over its cores.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_counters: BTreeMap<String, u64>,
    /// Counters of the client, added up over its cores.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub client_counters: BTreeMap<String, u64>,
    /// Warnings and errors, and that a program had to be killed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
}

impl Tunnel {
    /// Sets a tunnel up to this service and waits until both of its sides say that they are ready.
    pub fn start(
        spec: &Spec,
        setup: &Setup,
        cores: usize,
        service: SocketAddr,
    ) -> Result<Self, BenchError> {
        if spec.kind == Kind::Raw {
            return Ok(Self {
                visit: service,
                admin: None,
                client: None,
                server: None,
                client_launch: None,
            });
        }
        for _ in 1..STARTS_MAX {
            match Self::start_once(spec, setup, cores, service) {
                Err(BenchError::Ended { log, .. }) if log.contains("in use") => {}
                result => return result,
            }
        }
        Self::start_once(spec, setup, cores, service)
    }

    fn start_once(
        spec: &Spec,
        setup: &Setup,
        cores: usize,
        service: SocketAddr,
    ) -> Result<Self, BenchError> {
        let has_admin = setup.admin && matches!(spec.kind, Kind::QmuxDp | Kind::QmuxDpTls);
        let addresses = Addresses {
            admin: has_admin
                .then(|| ports::free(setup.place.server_ip))
                .transpose()?,
            quic: ports::free(setup.place.server_ip)?,
            traffic: ports::free(setup.place.server_ip)?,
            service,
        };
        let launches = launches(spec, setup, cores, &addresses)?;
        let is_ours = spec.kind.reads_dp_toml();
        let start = |launch: &Launch| {
            let program = launch.start()?;
            if is_ours {
                program.wait_for_line("readiness", READY_LIMIT, says_ready)?;
            }
            Ok::<_, BenchError>(program)
        };
        let server = start(&launches.server)?;
        let client = start(&launches.client)?;
        if !is_ours {
            // Both write a line once they are connected, each in its own words; a service without
            // one is not served.
            let connected = |line: &str| line.contains("Control channel established");
            client.wait_for_line("its connection", READY_LIMIT, connected)?;
        }
        Ok(Self {
            visit: addresses.traffic,
            admin: addresses.admin,
            client: Some(client),
            server: Some(server),
            client_launch: Some(launches.client),
        })
    }

    /// Its processes, to be metered.
    pub fn processes(&self) -> Vec<Metered> {
        let roles = [(Role::Server, &self.server), (Role::Client, &self.client)];
        roles
            .into_iter()
            .filter_map(|(role, program)| Some((role, program.as_ref()?)))
            .map(|(role, program)| Metered {
                role,
                pid: program.pid(),
                command_line: program.command_line().to_owned(),
            })
            .collect()
    }

    /// The process of one side.
    pub fn pid(&self, role: Role) -> Option<u32> {
        let process = self.processes().into_iter().find(|it| it.role == role);
        process.map(|it| it.pid)
    }

    /// Starts one more client of the same kind and waits until it is ready. It is killed when it is
    /// dropped.
    pub fn another_client(&self) -> Result<Program, BenchError> {
        let none = || BenchError::Failed("without a tunnel there is no client".into());
        let client = self.client_launch.as_ref().ok_or_else(none)?.start()?;
        client.wait_for_line("readiness", READY_LIMIT, says_ready)?;
        Ok(client)
    }

    /// Ends it.
    pub fn stop(mut self) -> Farewell {
        let mut farewell = Farewell::default();
        // Before the end: that one side is gone is no complaint then.
        farewell.take_complaints("server", self.server.as_ref());
        farewell.take_complaints("client", self.client.as_ref());
        if let Some(client) = &mut self.client {
            farewell.client_counters = farewell.end("client", client);
        }
        if let Some(server) = &mut self.server {
            farewell.server_counters = farewell.end("server", server);
        }
        farewell
    }
}

impl Farewell {
    fn take_complaints(&mut self, role: &str, program: Option<&Program>) {
        let lines = program.map(Program::lines).unwrap_or_default();
        let complaints = lines
            .iter()
            .filter(|line| line.contains(" WARN ") || line.contains("ERROR"))
            .take(COMPLAINTS_MAX)
            .map(|line| format!("{role}: {line}"));
        self.complaints.extend(complaints);
    }

    fn end(&mut self, role: &str, program: &mut Program) -> BTreeMap<String, u64> {
        if !program.terminate(END_LIMIT) {
            let killed = format!("{role}: still ran {END_LIMIT:?} after SIGTERM and was killed");
            self.complaints.push(killed);
        }
        let lines = program.lines();
        counters::totals(&counters::of_cores(lines.iter().map(String::as_str)))
    }
}

/// How both sides are started.
struct Launches {
    server: Launch,
    client: Launch,
}

/// The settings to try out, with what this kind of tunnel has of its own.
fn overrides(spec: &Spec, setup: &Setup) -> Overrides {
    const KEY: &str = "congestion_control";
    let mut overrides = setup.overrides.clone();
    let is_set = overrides
        .of("quic")
        .any(|line| line.trim_start().starts_with(KEY));
    if let Some(name) = spec.kind.congestion_control()
        && !is_set
    {
        overrides.add("quic", format!("{KEY} = \"{name}\""));
    }
    if spec.kind == Kind::QmuxDpTls {
        overrides.add("client.servers", "transport = \"tls\"");
    }
    overrides
}

fn launches(
    spec: &Spec,
    setup: &Setup,
    cores: usize,
    addresses: &Addresses,
) -> Result<Launches, BenchError> {
    let missing = || {
        let label = &spec.label;
        let programs = setup.programs.display();
        BenchError::Failed(format!(
            "{label}: its program is neither in {programs} nor in PATH"
        ))
    };
    let program = spec.program(&setup.programs).ok_or_else(missing)?;
    let layout = setup.layout(cores);
    let server_place = Where {
        cpus: layout.server,
        namespace: None,
    };
    let client_place = Where {
        cpus: layout.client,
        namespace: setup.place.far_namespace.clone(),
    };
    let (server_config, client_config, args): (String, String, Vec<String>) = match spec.kind {
        Kind::Rathole | Kind::RatholeNoise => {
            let keys = match spec.kind {
                Kind::RatholeNoise => Some(rathole::Keys::generate(&program)?),
                _ => None,
            };
            let server = rathole::server_toml(addresses, keys.as_ref());
            (
                server,
                rathole::client_toml(addresses, keys.as_ref()),
                Vec::new(),
            )
        }
        _ => {
            let mut args = vec!["--cores".to_owned(), cores.to_string()];
            if spec.kind.is_tuned() {
                args.push("--tuned".to_owned());
            }
            let overrides = &overrides(spec, setup);
            let server = site::server_toml(addresses, overrides);
            (server, site::client_toml(addresses, overrides), args)
        }
    };
    let launch = |role: &str, config: &str, place: Where| {
        let file = setup.site.write(&format!("{role}.toml"), config)?;
        let mut launch = Launch::new(&format!("{}'s {role}", spec.label), &program);
        if setup.by_instructions {
            launch = launch.under(callgrind::wrapping(setup.site.path()));
        }
        let launch = if spec.kind.reads_dp_toml() {
            launch.args(["--config".into(), file.into_os_string()])
        } else {
            launch.args([format!("--{role}").into(), file.into_os_string()])
        };
        Ok::<_, BenchError>(launch.args(args.clone()).at(place))
    };
    Ok(Launches {
        server: launch("server", &server_config, server_place)?,
        client: launch("client", &client_config, client_place)?,
    })
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
        let tuned = "quinn-dp-tuned".parse().expect("a tunnel");
        let mut setup = setup();
        let list = overrides(&tuned, &setup).list();
        assert_eq!(list, ["[quic] congestion_control = \"cubic\""]);
        let ours = "qmux-dp".parse().expect("a tunnel");
        assert!(overrides(&ours, &setup).list().is_empty());
        setup.overrides.add("quic", "congestion_control = \"reno\"");
        assert_eq!(overrides(&tuned, &setup), setup.overrides);
    }

    #[test]
    fn raw_is_the_service_itself() {
        let setup = setup();
        let service = SocketAddr::from(([127, 0, 0, 1], 9));
        let raw = Tunnel::start(&"raw".parse().expect("raw"), &setup, 1, service).expect("up");
        assert_eq!(raw.visit, service);
        assert!(raw.processes().is_empty());
        assert_eq!(raw.stop(), Farewell::default());

        let missing = Tunnel::start(
            &"qmux-dp:/nowhere/qmux-dp".parse().expect("a tunnel"),
            &setup,
            1,
            service,
        );
        assert!(missing.is_err());
    }
}
