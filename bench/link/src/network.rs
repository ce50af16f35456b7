//! Two hosts and the link between them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tun_rs::{DeviceBuilder, SyncDevice};

use super::error::LinkError;
use super::faults::Faults;
use super::namespace::{Namespace, check_support, ip, ip_command, remove_stale};
use super::profile::Profile;
use super::router::{Direction, Router};
use super::stats::{DirectionStats, Stats};

/// The interface of each host; only the namespace tells the two apart.
const DEVICE: &str = "link0";

/// The hosts' addresses. No packet with them leaves the two namespaces, so every network can have
/// the same addresses.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const PREFIX_BITS: u8 = 30;

/// The interface's own queue, in packets or pieces of up to 64 KiB. It is not part of the emulated
/// link: it only bridges the time until the router wakes up, 10 ms at a million packets per second.
const DEVICE_QUEUE_PACKETS: u32 = 10_000;

const LEFT_TO_RIGHT: &str = "left-to-right";
const RIGHT_TO_LEFT: &str = "right-to-left";

/// One end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The public side of a [`Preset`](super::Preset).
    Left,
    /// The side behind the access line.
    Right,
}

impl Side {
    /// The other end.
    pub fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// Two network namespaces with a link between them, as long as this value lives. Each has a
/// loopback interface of its own too. They have no route to this machine or to any other network.
///
/// Dropping the value kills every process in the namespaces, and then removes the namespaces. The
/// next [`Network::new`] removes what a killed process has left behind.
#[derive(Debug)]
pub struct Network {
    // The fields are dropped in this order: the router closes the devices before the namespaces are
    // removed.
    router: Router,
    namespaces: [Namespace; 2],
    faults: Arc<Faults>,
}

impl Network {
    /// Builds the network. The same seed makes the link take the same decisions about the same
    /// packets.
    ///
    /// # Errors
    ///
    /// A profile that cannot be emulated; [`LinkError::Unsupported`] if the process lacks the
    /// privileges, or the kernel the features; or the error of a system call.
    pub fn new(
        left_to_right: Profile,
        right_to_left: Profile,
        seed: u64,
    ) -> Result<Self, LinkError> {
        for (direction, profile) in [
            (LEFT_TO_RIGHT, &left_to_right),
            (RIGHT_TO_LEFT, &right_to_left),
        ] {
            profile
                .check()
                .map_err(|source| LinkError::Profile { direction, source })?;
        }
        check_support()?;
        remove_stale();
        let namespaces = Namespace::pair()?;
        let [left, right] = &namespaces;
        let left = host(left, ADDRESSES[0], left_to_right.interface_mtu())?;
        let right = host(right, ADDRESSES[1], right_to_left.interface_mtu())?;
        let faults = Arc::<Faults>::default();
        let router = Router::start([
            Direction {
                name: LEFT_TO_RIGHT,
                side: Side::Left,
                profile: left_to_right,
                from: Arc::clone(&left),
                to: Arc::clone(&right),
                seed,
                faults: Arc::clone(&faults),
            },
            Direction {
                name: RIGHT_TO_LEFT,
                side: Side::Right,
                profile: right_to_left,
                from: right,
                to: left,
                seed: !seed,
                faults: Arc::clone(&faults),
            },
        ])?;
        Ok(Self {
            router,
            namespaces,
            faults,
        })
    }

    /// A command that runs `program` on a host. The process id of its child is the program's own.
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        let mut command = ip_command();
        command
            .args(["netns", "exec", self.namespace(side)])
            .arg(program);
        command
    }

    /// Runs `action` on a thread of this process that is in a host's network. A socket made there
    /// belongs to that host for good, wherever it is used.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn within<T: Send>(
        &self,
        side: Side,
        action: impl FnOnce() -> T + Send,
    ) -> Result<T, LinkError> {
        self.namespaces[side as usize].enter(action)
    }

    /// The address of a host on the link.
    pub fn addr(&self, side: Side) -> IpAddr {
        ADDRESSES[side as usize].into()
    }

    /// The name of a host's namespace, for `ip netns exec`.
    pub fn namespace(&self, side: Side) -> &str {
        self.namespaces[side as usize].name()
    }

    /// The faults of the link, which the caller may switch on and off.
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    /// The statistics of the link so far.
    ///
    /// # Errors
    ///
    /// The counters of an interface cannot be read.
    pub fn stats(&self) -> Result<Stats, LinkError> {
        let direction = |from: Side| {
            let dropped_by_interface_packets = self.interface_drops(from)?;
            let cpu = self.router.cpu(from as usize);
            // The router waits for this lock: nothing slow may happen while it is held.
            let tally = self.router.tally(from as usize);
            Ok::<_, LinkError>(DirectionStats {
                counters: tally.counters,
                dropped_by_interface_packets,
                failed_packets: tally.failed_packets,
                lateness: tally.lateness(),
                cpu,
            })
        };
        Ok(Stats {
            left_to_right: direction(Side::Left)?,
            right_to_left: direction(Side::Right)?,
        })
    }

    fn interface_drops(&self, side: Side) -> Result<u64, LinkError> {
        let table = self
            .within(side, || fs::read_to_string("/proc/thread-self/net/dev"))?
            .map_err(LinkError::system("read the counters of an interface"))?;
        Ok(transmit_drops(&table).unwrap_or_default())
    }
}

/// The number of packets that [`DEVICE`] did not take, from the table of proc_pid_net(5): it has
/// eight columns for receiving and then those for transmitting, of which the fourth has the drops.
fn transmit_drops(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == DEVICE).then_some(counters)
    })?;
    line.split_ascii_whitespace().nth(11)?.parse().ok()
}

/// Sets a host up and returns its end of the link.
fn host(namespace: &Namespace, address: Ipv4Addr, mtu: u16) -> Result<Arc<SyncDevice>, LinkError> {
    let device = namespace
        .enter(|| open_device(mtu))?
        .map_err(LinkError::system("make a TUN device"))?;
    let name = namespace.name();
    let address = format!("{address}/{PREFIX_BITS}");
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    ip(&["-n", name, "address", "add", &address, "dev", DEVICE])?;
    ip(&["-n", name, "link", "set", DEVICE, "up"])?;
    Ok(Arc::new(device))
}

fn open_device(mtu: u16) -> io::Result<SyncDevice> {
    disable_ipv6()?;
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .mtu(mtu)
        .tx_queue_len(DEVICE_QUEUE_PACKETS)
        .offload(true)
        .enable(false)
        .build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// Switches IPv6 off in the network namespace of this thread, so that the link carries and counts
/// no packets (router solicitations, for example) but those of the programs.
fn disable_ipv6() -> io::Result<()> {
    let switch = Path::new("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    match fs::write(switch, "1") {
        // This kernel has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_from_the_column_of_the_device() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
 link0:     100       2    0    3    0     0          0         0      200       4    5    6    0     0       0          0
";
        assert_eq!(transmit_drops(table), Some(6));
        assert_eq!(transmit_drops("lo: 0"), None);
    }
}
