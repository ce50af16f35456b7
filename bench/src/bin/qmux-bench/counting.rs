//! Units of work that are counted rather than timed: by system calls, by instructions.

use std::thread;
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::meter::{Metered, Role};
use qmux_bench::load::bulk::Way;
use qmux_bench::load::standing::{Standing, Work};

use crate::options::Common;
use crate::runner::Session;

/// A kind of work, what one unit of it is called, and how many of the load's own units that is.
pub(crate) type Unit = (String, Work, f64);

/// Datagrams of each size, so many per second.
pub(crate) fn datagrams<'a>(
    sizes: &'a [usize],
    rate: u32,
    burst_packets: usize,
    (name, shown): (&'a str, f64),
) -> impl Iterator<Item = Unit> + 'a {
    sizes.iter().map(move |&payload_bytes| {
        let work = Work::Datagrams {
            payload_bytes,
            rate: f64::from(rate),
            burst_packets,
        };
        let name = format!("{name} of {payload_bytes} B at {rate}/s");
        (name, work, shown)
    })
}

/// Bytes each way.
pub(crate) fn bytes(name: &str, shown: f64) -> [Unit; 2] {
    let ways = [(Way::Up, "service"), (Way::Down, "visitor")];
    ways.map(|(way, to)| (format!("{name} to the {to}"), Work::Bulk(way), shown))
}

/// A load that works while something is counted, and stands still when that begins and ends.
pub(crate) struct Counting<'a> {
    session: &'a Session<'a>,
    load: Standing<'a>,
    shown: f64,
    measure: Duration,
    settle: Duration,
}

impl<'a> Counting<'a> {
    /// Warms up. What the load has left to do when it stands still (the last acknowledgements, the
    /// ends of flows) is done and counted within `settle`.
    pub(crate) fn start(
        session: &'a Session<'a>,
        work: Work,
        shown: f64,
        common: &Common,
        settle: Duration,
    ) -> Result<Self, BenchError> {
        let mut load = Standing::start(work, session.visit, session.service()?)?;
        load.work(common.warm_up())?;
        thread::sleep(settle);
        let measure = common.measure();
        Ok(Self {
            session,
            load,
            shown,
            measure,
            settle,
        })
    }

    /// What has been done so far.
    pub(crate) fn done(&self) -> u64 {
        self.load.done()
    }

    /// Works, and stands still again.
    pub(crate) fn work(&mut self) -> Result<(), BenchError> {
        self.load.work(self.measure)?;
        thread::sleep(self.settle);
        Ok(())
    }

    /// Works while each process of the tunnel is counted. Returns what was counted of each, in how
    /// many units, and the metrics of the whole.
    #[expect(clippy::type_complexity, reason = "named where it is taken")]
    pub(crate) fn count<C, T>(
        &mut self,
        attach: impl Fn(&Metered) -> Result<C, BenchError>,
        detach: impl Fn(C) -> Result<T, BenchError>,
    ) -> Result<(Vec<(Role, T, f64)>, Vec<(&'static str, f64)>), BenchError> {
        let sent = self.load.sent();
        let mut counters = Vec::new();
        let processes = self.session.processes.iter();
        for process in processes.filter(|it| it.role.is_tunnel()) {
            counters.push((process.role, attach(process)?, self.done()));
        }
        self.work()?;
        let (mut counted, mut last) = (Vec::new(), 0.0);
        for (role, counter, began) in counters {
            last = units(began, self.done(), self.shown)?;
            counted.push((role, detach(counter)?, last));
        }
        let mut values = vec![("units", last)];
        if let Some((before, after)) = sent.zip(self.load.sent()) {
            let lost = 1.0 - last * self.shown / exact(after - before).max(1.0);
            values.push(("lost_percent", lost * 100.0));
        }
        Ok((counted, values))
    }
}

/// How many units were done.
pub(crate) fn units(began: u64, ended: u64, shown: f64) -> Result<f64, BenchError> {
    match ended - began {
        0 => Err(BenchError::Failed("no work was done".into())),
        done => Ok(exact(done) / shown),
    }
}

pub(crate) fn exact(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_work_is_no_measurement() {
        assert!(units(5, 5, 1.0).is_err());
        assert_eq!(units(0, 2_000, 1_000.0).expect("work"), 2.0);
    }
}
