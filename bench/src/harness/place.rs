//! Where the two sides of a tunnel are: both on loopback, or in two network namespaces with a link between them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::BenchError;
use super::cleanup::{Guard, Undo};

/// Addresses of the two ends of a link, in namespaces of our own.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 2);
const PREFIX_LENGTH: u8 = 30;

/// Where everything runs. Visitors and the server are on the near side, the client and the service on the far side.
#[derive(Debug)]
pub struct Place {
    /// What reports call it.
    pub name: String,
    /// Where the server listens.
    pub server_ip: IpAddr,
    /// Where the service listens.
    pub service_ip: IpAddr,
    /// The far side's network namespace, if it has one.
    pub far_namespace: Option<String>,
    _namespaces: Vec<Guard>,
}

impl Place {
    /// Both sides on loopback.
    pub fn loopback() -> Self {
        Self {
            name: "loopback".into(),
            server_ip: Ipv4Addr::LOCALHOST.into(),
            service_ip: Ipv4Addr::LOCALHOST.into(),
            far_namespace: None,
            _namespaces: Vec::new(),
        }
    }

    /// A place that somebody else has set up, with this thread on the near side already.
    pub fn prepared(name: String, near: IpAddr, far: IpAddr, far_namespace: String) -> Self {
        Self {
            name,
            server_ip: near,
            service_ip: far,
            far_namespace: Some(far_namespace),
            _namespaces: Vec::new(),
        }
    }

    /// Two network namespaces with a pair of virtual Ethernet devices between them; moves the calling thread into the
    /// near one. Threads and programs that it starts later are there, too; so call it first of all.
    ///
    /// # Errors
    ///
    /// If the system refuses, as it does without root's rights.
    pub fn veth(mtu: u32) -> Result<Self, BenchError> {
        let id = std::process::id();
        let (near, far) = (
            format!("qmux-bench-{id}-near"),
            format!("qmux-bench-{id}-far"),
        );
        let mut guards = Vec::new();
        for name in [&near, &far] {
            ip(&["netns", "add", name])?;
            guards.push(Guard::new(Undo::Namespace(name.clone())));
        }
        let mtu_text = mtu.to_string();
        ip(&[
            "-n", &near, "link", "add", "link", "mtu", &mtu_text, "type", "veth", "peer", "name",
            "link", "mtu", &mtu_text, "netns", &far,
        ])?;
        for (name, address) in [(&near, NEAR), (&far, FAR)] {
            let address = format!("{address}/{PREFIX_LENGTH}");
            ip(&["-n", name, "address", "add", &address, "dev", "link"])?;
            ip(&["-n", name, "link", "set", "link", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        enter_namespace(&near)?;
        Ok(Self {
            name: format!("veth, MTU {mtu}"),
            server_ip: NEAR.into(),
            service_ip: FAR.into(),
            far_namespace: Some(far),
            _namespaces: guards,
        })
    }
}

/// Moves the calling thread into a network namespace of `ip netns`.
///
/// # Errors
///
/// If there is no such namespace or the thread may not enter it.
pub fn enter_namespace(name: &str) -> Result<(), BenchError> {
    let entering = || format!("entering the network namespace {name}");
    let file = File::open(format!("/run/netns/{name}")).map_err(BenchError::io(entering()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| BenchError::io(entering())(error.into()))
}

fn ip(args: &[&str]) -> Result<(), BenchError> {
    let what = format!("ip {}", args.join(" "));
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(BenchError::io(what.clone()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Output {
        what,
        problem: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
