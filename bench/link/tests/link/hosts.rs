//! The two hosts: they reach each other alone, and nothing of them stays behind.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::{fs, io, thread};

use qmux_link::{Network, Profile, Side};

use super::{Bench, SEED, ms, symmetric};

fn namespace_path(network: &Network, side: Side) -> PathBuf {
    PathBuf::from("/run/netns").join(network.namespace(side))
}

#[test]
fn nothing_stays_behind_not_even_after_a_panic() {
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let Bench { network, _turn } = bench;
    let paths = [Side::Left, Side::Right].map(|side| namespace_path(&network, side));
    assert!(paths.iter().all(|path| path.exists()));
    let mut sleeper = network
        .command(Side::Left, "sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    // The process is in the namespace once its program runs.
    while fs::read_to_string(format!("/proc/{}/comm", sleeper.id())).unwrap() != "sleep\n" {
        thread::sleep(ms(1));
    }
    let panic = thread::spawn(move || {
        let _network = network;
        panic!("a test that fails with a network");
    });
    assert!(panic.join().is_err());
    assert!(!paths.iter().any(|path| path.exists()));
    assert!(!sleeper.wait().unwrap().success());
}

#[test]
fn what_a_killed_process_left_behind_is_removed_by_the_next() {
    // No process has this id: it is above what the kernel gives out (PID_MAX_LIMIT).
    let stale = "qmux-link-4194305-1-0-left";
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let ip = |arguments: &[&str]| Command::new("ip").args(arguments).status();
    if !matches!(ip(&["netns", "add", stale]), Ok(status) if status.success()) {
        println!("SKIPPED: `ip` is not on the PATH");
        return;
    }
    let next = Network::new(Profile::default(), Profile::default(), SEED).unwrap();
    assert!(!PathBuf::from("/run/netns").join(stale).exists());
    assert!(namespace_path(&bench.network, Side::Left).exists());
    assert!(namespace_path(&next, Side::Left).exists());
}

#[test]
fn a_host_reaches_nothing_but_the_other_one() {
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let outside: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let error = bench
        .network
        .within(Side::Left, || {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", outside)
        })
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
}
