//! What a running qmux-dp says about itself: its metrics, read from its admin endpoint.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The time between two requests while a caller waits for something.
const POLL: Duration = Duration::from_millis(20);

/// What every name begins with.
const PREFIX: &str = "qmux_dp_";

/// The values of one answer by name, without the prefix and without a counter's `_total`, each the
/// sum over its labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub(crate) fn read(admin: SocketAddr) -> Result<Self> {
        Self::ask(admin).with_context(|| format!("the metrics of {admin}"))
    }

    fn ask(admin: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&admin, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 200"), "{status}");
        Ok(Self::parse(body))
    }

    /// Asks until what it says is as wanted, and returns that answer.
    pub(crate) fn until(
        admin: SocketAddr,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            let scrape = Self::read(admin)?;
            if wanted(&scrape) {
                return Ok(scrape);
            }
            if Instant::now() >= deadline {
                bail!("{what} took longer than {limit:?}");
            }
            thread::sleep(POLL);
        }
    }

    fn parse(body: &str) -> Self {
        let mut sums = BTreeMap::new();
        for line in body.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let name = series.split('{').next().unwrap_or_default();
            let name = name.strip_prefix(PREFIX).unwrap_or(name);
            let name = name.strip_suffix("_total").unwrap_or(name);
            if let Ok(value) = value.parse::<f64>() {
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
        Self(sums)
    }

    /// A value; what is not said is zero.
    pub(crate) fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn growth(&self, before: &Self, name: &str) -> f64 {
        self.get(name) - before.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_added_up_over_their_labels() {
        let body = "# HELP qmux_dp_mail_received Mail.\n\
                    # TYPE qmux_dp_mail_received counter\n\
                    qmux_dp_mail_received_total{core=\"0\"} 2\n\
                    qmux_dp_mail_received_total{core=\"1\"} 40\n\
                    qmux_dp_listener_lanes{listener=\"0\",quic_addr=\"127.0.0.1:1\"} 8.0\n\
                    process_open_fds 12\n# EOF\n";
        let scrape = Scrape::parse(body);
        for (name, value) in [
            ("mail_received", 42.0),
            ("listener_lanes", 8.0),
            ("process_open_fds", 12.0),
            ("never_counted", 0.0),
        ] {
            assert_eq!(scrape.get(name), value, "{name}");
        }
        let later = Scrape::parse("qmux_dp_mail_received_total{core=\"0\"} 45");
        assert_eq!(later.growth(&scrape, "mail_received"), 3.0);
    }
}
