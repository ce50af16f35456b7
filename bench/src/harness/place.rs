//! Where the two sides of a tunnel are: both on loopback, or in two network namespaces with a link
//! between them.
//!
//! The thread that sets a place up moves into its near side and stays there until the place is
//! dropped; it must be the one that starts everything else.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use qmux_harness::Where;
use qmux_link::{Faults, Namespace, Network, Preset, Side, Stats, ip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cleanup::{Guard, Undo};

/// Addresses of the two ends of a link, in namespaces of our own.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 2);
const PREFIX_LENGTH: u8 = 30;

/// The name of both ends.
const DEVICE: &str = "veth0";

/// Where everything runs. Visitors and the server are on the near side, the client and the service
/// on the far side.
#[derive(Debug)]
pub struct Place {
    pub(crate) name: String,
    pub(crate) server_ip: IpAddr,
    pub(crate) service_ip: IpAddr,
    pub(crate) far_namespace: Option<String>,
    link: Option<Network>,
    // Should a signal end this process.
    _guards: Vec<Guard>,
    _veth: Option<[Namespace; 2]>,
    /// Where the thread came from. It must be back before its namespace goes, for that ends every
    /// process in it.
    home: Option<File>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // Fails only for want of rights, which it had when it left.
            let _ = enter(home);
        }
    }
}

impl Place {
    /// Both sides on loopback.
    pub fn loopback() -> Self {
        Self {
            name: "loopback".into(),
            server_ip: Ipv4Addr::LOCALHOST.into(),
            service_ip: Ipv4Addr::LOCALHOST.into(),
            far_namespace: None,
            link: None,
            _guards: Vec::new(),
            _veth: None,
            home: None,
        }
    }

    /// With these sides in namespaces, the near and the far one; moves the calling thread into the
    /// near one.
    fn apart(name: String, ips: [IpAddr; 2], namespaces: [&str; 2]) -> Result<Self> {
        let home = File::open("/proc/thread-self/ns/net");
        let guard = |name: &str| Guard::new(Undo::Namespace(name.to_owned()));
        let mut place = Self::loopback();
        place.name = name;
        [place.server_ip, place.service_ip] = ips;
        place.far_namespace = Some(namespaces[1].to_owned());
        place._guards = namespaces.into_iter().map(guard).collect();
        place.home = Some(home.context("this thread's network namespace")?);
        enter_namespace(namespaces[0])?;
        Ok(place)
    }

    /// Two network namespaces with an emulated link between them, the server on its public side;
    /// moves the calling thread into the near one, as [`Place::veth`] does.
    pub(crate) fn link(link: &Preset) -> Result<Self> {
        /// The same decisions about the same packets for every tunnel and every run.
        const SEED: u64 = 1;
        let (down, up) = (link.left_to_right.clone(), link.right_to_left.clone());
        let network = Network::new(down, up, SEED)?;
        let sides = [Side::Left, Side::Right];
        let name = format!("link {} ({})", link.name, link.summary);
        let ips = sides.map(|side| network.addr(side));
        let mut place = Self::apart(name, ips, sides.map(|side| network.namespace(side)))?;
        place.link = Some(network);
        Ok(place)
    }

    /// Where programs of the far side run, on any CPU.
    pub(crate) fn far(&self) -> Where {
        Where {
            cpus: Vec::new(),
            namespace: self.far_namespace.clone(),
        }
    }

    /// What the emulated link did so far, from the server's side and back; `None` if there is none.
    pub(crate) fn link_stats(&self) -> Option<Stats> {
        self.link.as_ref()?.stats().ok()
    }

    /// What goes wrong on the emulated link; `None` if there is none.
    pub(crate) fn faults(&self) -> Option<Arc<Faults>> {
        self.link.as_ref().map(|link| Arc::clone(link.faults()))
    }

    /// Two network namespaces with a pair of virtual Ethernet devices between them; moves the
    /// calling thread into the near one. Threads and programs that it starts later are there, too;
    /// so call it first of all.
    pub(crate) fn veth(mtu: u32) -> Result<Self> {
        let namespaces = Namespace::pair()?;
        let [near, far] = namespaces.each_ref().map(Namespace::name);
        let run = |command: &str| ip(&command.split(' ').collect::<Vec<_>>());
        let peer = format!("peer name {DEVICE} mtu {mtu} netns {far}");
        run(&format!(
            "-n {near} link add {DEVICE} mtu {mtu} type veth {peer}"
        ))?;
        for (name, address) in [(near, NEAR), (far, FAR)] {
            run(&format!(
                "-n {name} address add {address}/{PREFIX_LENGTH} dev {DEVICE}"
            ))?;
            run(&format!("-n {name} link set {DEVICE} up"))?;
            run(&format!("-n {name} link set lo up"))?;
        }
        let name = format!("veth, MTU {mtu}");
        let mut place = Self::apart(name, [NEAR.into(), FAR.into()], [near, far])?;
        place._veth = Some(namespaces);
        Ok(place)
    }
}

fn enter(namespace: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

/// Moves the calling thread into a network namespace of `ip netns`.
pub(crate) fn enter_namespace(name: &str) -> Result<()> {
    let entering = || format!("entering the network namespace {name}");
    let file = File::open(format!("/run/netns/{name}")).with_context(entering)?;
    enter(&file).with_context(entering)
}
