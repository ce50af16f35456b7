//! What a service on the server demands of its visitors: where they may come from, how many of them
//! at a time, how often, and how long they may be silent.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::limits;
use crate::named_file::NamedFile;
use crate::networks::{self, NETWORK_FORM, Networks};
use crate::section::Section;
use crate::server::ListenerProtocol;
use crate::units::DAY;

/// The highest limit: as many descriptors as Linux lets a process have by default (`fs.nr_open`).
const LIMIT_MAX: i64 = 1 << 20;

/// The longest idle timeout: a flow that may be silent for a month is better left alone.
const IDLE_TIMEOUT_MAX: Duration = DAY.saturating_mul(30);

/// Below this bandwidth of a visitor, in bytes per second, a page is not there within a minute, so
/// that most who ask for it mean another unit.
const BANDWIDTH_SLOW: u64 = 1_000;
/// The largest bandwidth of a visitor: a thousand times what a network card carries.
const BANDWIDTH_MAX: u64 = 1 << 40;

const WITHOUT_EFFECT: &str = "has no effect with the protocol of this service";

const LIST_FORM: &str = "an array of networks, as in [\"192.0.2.0/24\", \"2001:db8::/32\"]";
const FILE_FORM: &str = "the path of a file with one network in each line";

/// What a service demands of its visitors, TCP and UDP. The default demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Networks that visitors may come from; `None` if they may come from everywhere.
    pub allow: Option<Networks>,
    /// Networks that visitors may not come from, whatever `allow` says.
    pub deny: Networks,
    /// Balancers whose TCP visitors begin with a PROXY header, and count as coming from the address
    /// in it.
    pub accept_proxy_from: Networks,
    /// TCP visitors at a time, of the whole process. Zero means no limit, as for the other limits.
    pub max_visitors: u32,
    /// TCP visitors at a time of one source: an IPv4 address, or an IPv6 network of 64 bits.
    pub max_visitors_per_source: u32,
    /// New TCP visitors of one source per second, and as many at once.
    pub visitors_per_second_per_source: u32,
    /// UDP flows at a time of one source.
    pub max_udp_flows_per_source: u32,
    /// Bytes per second that a TCP visitor or a UDP flow may have in each direction; zero means no
    /// limit.
    pub bandwidth_per_visitor: u64,
    /// A TCP flow in which no byte is moved for this long in either direction is reset; zero means
    /// never.
    pub idle_timeout: Duration,
}

impl Bounds {
    /// Reads the keys of a service or a listener.
    pub(crate) fn read(section: &Section<'_>, protocol: Option<ListenerProtocol>) -> Self {
        let allow = read_list(section, "allow", Some("allow_file"));
        if let Some(path) = section.any("allow_file")
            && matches!(&allow, Some(allow) if allow.is_empty())
        {
            let message = "names no network, so that nobody could come in; it must name one at \
                           least";
            section.problem_at("allow_file", &path.span(), message);
        }
        let deny = read_list(section, "deny", Some("deny_file")).unwrap_or_default();
        let tcp = protocol.is_none_or(ListenerProtocol::tcp);
        let udp = protocol.is_none_or(ListenerProtocol::udp);
        let limit = |key, has_effect| read_limit(section, key, has_effect);
        Self {
            allow: allow
                .filter(|allow| !allow.is_empty())
                .map(Networks::from_iter),
            deny: deny.into_iter().collect(),
            accept_proxy_from: read_balancers(section, tcp),
            max_visitors: limit("max_visitors", tcp),
            max_visitors_per_source: limit("max_visitors_per_source", tcp),
            visitors_per_second_per_source: limit("visitors_per_second_per_source", tcp),
            max_udp_flows_per_source: limit("max_udp_flows_per_source", udp),
            bandwidth_per_visitor: read_bandwidth(section),
            idle_timeout: read_idle_timeout(section, tcp),
        }
    }

    /// Whether `deny` names this address.
    #[must_use]
    pub fn denies(&self, ip: IpAddr) -> bool {
        self.deny.contains(ip)
    }

    /// Whether there is an `allow` that does not name this address.
    #[must_use]
    pub fn does_not_allow(&self, ip: IpAddr) -> bool {
        self.allow.as_ref().is_some_and(|allow| !allow.contains(ip))
    }
}

/// Reads a number of visitors or flows; zero, which is the default, means no limit.
fn read_limit(section: &Section<'_>, key: &'static str, has_effect: bool) -> u32 {
    let limit = section.integer(key, 0..=LIMIT_MAX);
    let limit = limit.and_then(|limit| u32::try_from(limit.into_inner()).ok());
    let limit = limit.unwrap_or_default();
    if limit > 0 && !has_effect {
        section.warn_unused(key, WITHOUT_EFFECT);
    }
    limit
}

/// Reads the bytes per second; zero, which is the default, means no limit.
fn read_bandwidth(section: &Section<'_>) -> u64 {
    let key = "bandwidth_per_visitor";
    let Some(bandwidth) = section.size(key, 0..=BANDWIDTH_MAX) else {
        return 0;
    };
    let bytes_per_s = *bandwidth.get_ref();
    if bytes_per_s > 0 && bytes_per_s < BANDWIDTH_SLOW {
        let message = format!(
            "each visitor gets {bytes_per_s} bytes per second only; a number without a unit counts \
             bytes"
        );
        let full = section.key(key);
        let report = section.report();
        report.warning(&full, &bandwidth.span(), &message);
    }
    bytes_per_s
}

fn read_idle_timeout(section: &Section<'_>, has_effect: bool) -> Duration {
    let key = "idle_timeout";
    let timeout = limits::read_timeout(section, key, IDLE_TIMEOUT_MAX).unwrap_or_default();
    if !timeout.is_zero() && !has_effect {
        section.warn_unused(key, WITHOUT_EFFECT);
    }
    timeout
}

/// Reads the balancers whose visitors begin with a PROXY header.
fn read_balancers(section: &Section<'_>, has_effect: bool) -> Networks {
    let key = "accept_proxy_from";
    let networks = read_list(section, key, None).unwrap_or_default();
    if !networks.is_empty() && !has_effect {
        section.warn_unused(key, WITHOUT_EFFECT);
    }
    if let Some(all) = networks.iter().find(|it| it.prefix_len() == 0)
        && let Some(value) = section.any(key)
    {
        let message = format!(
            "{all} lets everybody claim to come from any address; it should name the balancers only"
        );
        let key = section.key(key);
        section.report().warning(&key, &value.span(), &message);
    }
    networks.into_iter().collect()
}

/// The networks under one key together with those of the file that the other one names; `None` if
/// something is wrong with them, which has been reported.
fn read_list(
    section: &Section<'_>,
    key: &'static str,
    file_key: Option<&'static str>,
) -> Option<Vec<IpNet>> {
    let mut networks = Vec::new();
    let mut right = true;
    let texts = section.strings(key, LIST_FORM);
    for text in texts.into_iter().flat_map(toml::Spanned::into_inner) {
        match networks::parse(text.get_ref()) {
            Ok(network) => networks.push(network),
            Err(message) => {
                section.problem_at(key, &text.span(), message);
                right = false;
            }
        }
    }
    let form = format!("{FILE_FORM}: {NETWORK_FORM}");
    if let Some(file_key) = file_key
        && let Some(path) = section.filled_string(file_key, &form)
    {
        let named = NamedFile::of(section, path.get_ref(), None);
        match networks::read_file(&named.path) {
            Ok(of_file) => networks.extend(of_file),
            Err(message) => {
                named.problem(section, file_key, &path.span(), &message);
                right = false;
            }
        }
    }
    right.then_some(networks)
}
