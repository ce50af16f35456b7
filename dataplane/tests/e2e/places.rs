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

/// What `find` finds in the directories of `/proc` for its core's thread, once it does.
fn of_core<T>(program: &Program, what: &str, find: impl Fn(&Path) -> Option<T>) -> T {
    let tasks = format!("/proc/{}/task", program.id());
    wait::until(what, || {
        let tasks = fs::read_dir(&tasks).ok()?.flatten();
        let mut paths = tasks.map(|task| task.path());
        let is_core = |path: &Path| {
            let name = fs::read_to_string(path.join("comm"));
            name.is_ok_and(|name| name.trim() == "core-0")
        };
        paths
            .find(|path| is_core(path))
            .and_then(|path| find(&path))
    })
}

fn value_of<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim())
}

/// The CPUs that its core's thread may run on, once that is pinned.
fn cpus_of_core(program: &Program) -> String {
    of_core(program, "the core is pinned", |core| {
        let status = fs::read_to_string(core.join("status")).ok()?;
        let cpus = value_of(&status, "Cpus_allowed_list")?;
        cpus.parse::<usize>().is_ok().then(|| cpus.to_owned())
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

/// Whether threads may have slices of CPU time of their own, and are told them.
fn kernel_has_slices() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    version >= (Some(6), Some(12)) && Path::new("/proc/self/sched").exists()
}

#[test]
fn a_core_has_a_short_slice_of_cpu_time() {
    if subject::only_wire("a_core_has_a_short_slice_of_cpu_time") {
        return;
    }
    if !kernel_has_slices() {
        eprintln!("a_core_has_a_short_slice_of_cpu_time: left out, this kernel has none");
        return;
    }
    let site = Site::new();
    let client = start(&site, &subject::client(), "slice");
    of_core(&client, "the core's slice is short", |core| {
        let scheduler = fs::read_to_string(core.join("sched")).ok()?;
        let nanos: u64 = value_of(&scheduler, "se.slice")?.parse().ok()?;
        (nanos <= 500_000).then_some(())
    });
}
