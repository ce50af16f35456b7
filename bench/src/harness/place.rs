//! Where the two sides of a tunnel are: both on loopback, or in two network namespaces with a link
//! between them.
//!
//! The thread that sets a place up moves into its near side and stays there until the place is
//! dropped; it must be the one that starts everything else.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::BenchError;
use super::cleanup::{Guard, Undo};
use qmux_harness::Where;
use qmux_link::{Faults, LinkError, Namespace, Network, Preset, Side, Stats, ip};

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
    /// What reports call it.
    pub name: String,
    /// Where the server listens.
    pub server_ip: IpAddr,
    /// Where the service listens.
    pub service_ip: IpAddr,
    /// The far side's network namespace, if it has one.
    pub far_namespace: Option<String>,
    link: Option<Network>,
    // Should a signal end this process.
    _guards: Vec<Guard>,
    _veth: Option<[Namespace; 2]>,
    home: Option<Home>,
}

/// Where the thread came from. It must be back before its namespace goes, for that ends every
/// process in it.
#[derive(Debug)]
struct Home(File);

impl Home {
    fn here() -> Result<Self, BenchError> {
        let file = File::open("/proc/thread-self/ns/net");
        Ok(Self(file.map_err(BenchError::io(
            "this thread's network namespace",
        ))?))
    }

    fn go(&self) {
        // Fails only for want of rights, which it had when it left.
        let _ = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.go();
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

    /// Two network namespaces with an emulated link between them, the server on its public side;
    /// moves the calling thread into the near one, as [`Place::veth`] does.
    pub fn link(link: &Preset) -> Result<Self, BenchError> {
        /// The same decisions about the same packets for every tunnel and every run.
        const SEED: u64 = 1;
        let home = Home::here()?;
        let (down, up) = (link.left_to_right.clone(), link.right_to_left.clone());
        let network = Network::new(down, up, SEED).map_err(|error| failed(&error))?;
        let names = [Side::Left, Side::Right].map(|side| network.namespace(side).to_owned());
        let place = Self {
            name: format!("link {} ({})", link.name, link.summary),
            server_ip: network.addr(Side::Left),
            service_ip: network.addr(Side::Right),
            far_namespace: Some(names[1].clone()),
            link: Some(network),
            _guards: guards([&names[0], &names[1]]),
            _veth: None,
            home: Some(home),
        };
        enter_namespace(&names[0])?;
        Ok(place)
    }

    /// Where programs of the far side run, on any CPU.
    pub fn far(&self) -> Where {
        Where {
            cpus: Vec::new(),
            namespace: self.far_namespace.clone(),
        }
    }

    /// What the emulated link did so far, from the server's side and back; `None` if there is none.
    pub fn link_stats(&self) -> Option<Stats> {
        self.link.as_ref()?.stats().ok()
    }

    /// What goes wrong on the emulated link; `None` if there is none.
    pub fn faults(&self) -> Option<Arc<Faults>> {
        self.link.as_ref().map(|link| Arc::clone(link.faults()))
    }

    /// Two network namespaces with a pair of virtual Ethernet devices between them; moves the
    /// calling thread into the near one. Threads and programs that it starts later are there, too;
    /// so call it first of all.
    pub fn veth(mtu: u32) -> Result<Self, BenchError> {
        let home = Home::here()?;
        let namespaces = Namespace::pair().map_err(|error| failed(&error))?;
        let [near, far] = namespaces.each_ref().map(|it| it.name().to_owned());
        let mtu_text = mtu.to_string();
        let peer = [
            "type", "veth", "peer", "name", DEVICE, "mtu", &mtu_text, "netns", &far,
        ];
        let add = ["-n", &near, "link", "add", DEVICE, "mtu", &mtu_text];
        ip(&[&add[..], &peer].concat()).map_err(|error| failed(&error))?;
        for (name, address) in [(&near, NEAR), (&far, FAR)] {
            let address = format!("{address}/{PREFIX_LENGTH}");
            for rest in [
                &["address", "add", &address, "dev", DEVICE][..],
                &["link", "set", DEVICE, "up"],
                &["link", "set", "lo", "up"],
            ] {
                ip(&[&["-n", name], rest].concat()).map_err(|error| failed(&error))?;
            }
        }
        enter_namespace(&near)?;
        Ok(Self {
            name: format!("veth, MTU {mtu}"),
            server_ip: NEAR.into(),
            service_ip: FAR.into(),
            far_namespace: Some(far.clone()),
            link: None,
            _guards: guards([&near, &far]),
            _veth: Some(namespaces),
            home: Some(home),
        })
    }
}

/// Moves the calling thread into a network namespace of `ip netns`.
pub fn enter_namespace(name: &str) -> Result<(), BenchError> {
    let entering = || format!("entering the network namespace {name}");
    let file = File::open(format!("/run/netns/{name}")).map_err(BenchError::io(entering()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| BenchError::io(entering())(error.into()))
}

fn guards(namespaces: [&String; 2]) -> Vec<Guard> {
    let guard = |name: &String| Guard::new(Undo::Namespace(name.clone()));
    namespaces.into_iter().map(guard).collect()
}

fn failed(error: &LinkError) -> BenchError {
    BenchError::Failed(error.to_string())
}
