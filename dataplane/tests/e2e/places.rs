//! Which CPUs the processes of one host take.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::ports;
use crate::support::program::{Launch, Program};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Site, client_config};
use crate::support::wait;

/// A client of one core, by the name of `program`. It needs no server for this.
fn start(site: &Site, program: &Path, name: &'static str) -> Program {
    let setup = ClientSetup {
        name,
        ..ClientSetup::default()
    };
    let server = ports::free_address().to_string();
    let config = client_config(&setup, &[&server], ports::free_address());
    let config = site.write(&format!("{name}.toml"), &config);
    let launch = Launch::new(name, program).args(["--config", &config, "--cores", "1"]);
    launch.start()
}

/// The CPUs that its core's thread may run on, once that is pinned.
fn cpus_of_core(program: &Program) -> String {
    let tasks = format!("/proc/{}/task", program.id());
    let line = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim().to_owned())
    };
    wait::until("the core is pinned", || {
        let tasks = fs::read_dir(&tasks).ok()?.flatten();
        tasks
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .filter(|status| line(status, "Name:").as_deref() == Some("core-0"))
            .filter_map(|status| line(&status, "Cpus_allowed_list:"))
            .find(|cpus| cpus.parse::<usize>().is_ok())
    })
}

#[test]
fn two_clients_of_one_host_do_not_share_a_cpu() {
    if subject::only_wire("two_clients_of_one_host_do_not_share_a_cpu") {
        return;
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("two_clients_of_one_host_do_not_share_a_cpu: left out on one CPU");
        return;
    }
    let site = Site::new();
    // Processes know each other by the program's name; those of other tests have another one.
    let program = site.path().join(format!("cpus-{}", std::process::id()));
    symlink(subject::client(), &program).expect("linked");
    let first = start(&site, &program, "first");
    let cpu_of_first = cpus_of_core(&first);
    let comm = fs::read_to_string(format!("/proc/{}/comm", first.id())).expect("its name");
    assert!(comm.starts_with("cpus-"), "{comm}");
    let second = start(&site, &program, "second");
    assert_ne!(cpu_of_first, cpus_of_core(&second));
}
