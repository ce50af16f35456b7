//! Measurements that count something per unit of work, such as system calls or instructions, rather
//! than the time that it takes.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::commands::options::Common;
use crate::commands::runner::Session;
use crate::harness::meter::{Metered, Role};
use crate::load::bulk::Way;
use crate::load::standing::{Standing, Work};
use crate::load::udp_source::Stream;

/// The name of a unit of work, the kind of work, and how many of the load's own units make one.
pub(crate) type Unit = (String, Work, f64);

/// A unit for datagrams of each size, `rate` of them per second.
pub(crate) fn datagrams<'a>(
    sizes: &'a [usize],
    rate: u32,
    burst_packets: usize,
    (name, shown): (&'a str, f64),
) -> impl Iterator<Item = Unit> + 'a {
    sizes.iter().map(move |&payload_bytes| {
        let stream = Stream {
            payload_bytes,
            rate: f64::from(rate),
            burst_packets,
        };
        let name = format!("{name} of {payload_bytes} B at {rate}/s");
        (name, Work::Datagrams(stream), shown)
    })
}

pub(crate) fn bytes(name: &str, shown: f64) -> [Unit; 2] {
    let ways = [(Way::Up, "service"), (Way::Down, "visitor")];
    ways.map(|(way, to)| (format!("{name} to the {to}"), Work::Bulk(way), shown))
}

/// A load that runs while something is counted, and is idle when the counting begins and ends.
pub(crate) struct Counting<'a> {
    session: &'a Session<'a>,
    load: Standing<'a>,
    /// How many of the load's own units make one unit of the result.
    shown: f64,
    measure: Duration,
    settle: Duration,
}

/// For each process of the tunnel, what was counted and over how many units; then the metrics of
/// the whole measurement.
type Counted<T> = (Vec<(Role, T, f64)>, Vec<(&'static str, f64)>);

impl<'a> Counting<'a> {
    /// Starts the load and warms up. Each time the load stops, `settle` is the time for what it
    /// leaves to do (the last acknowledgements, the ends of flows), so that this is counted as
    /// well.
    pub(crate) fn start(
        session: &'a Session<'a>,
        (work, shown): (Work, f64),
        common: &Common,
        settle: Duration,
    ) -> Result<Self> {
        let mut load = Standing::start(work, session.visit, session.service()?)?;
        load.work(common.warm_up())?;
        thread::sleep(settle);
        Ok(Self {
            session,
            load,
            shown,
            measure: common.measure(),
            settle,
        })
    }

    pub(crate) fn done(&self) -> u64 {
        self.load.done()
    }

    pub(crate) fn work(&mut self) -> Result<()> {
        self.load.work(self.measure)?;
        thread::sleep(self.settle);
        Ok(())
    }

    pub(crate) fn units(&self, began: u64) -> Result<f64> {
        let done = self.done() - began;
        ensure!(done > 0, "no work was done");
        Ok(done as f64 / self.shown)
    }

    /// Runs the load while a counter is attached to each process of the tunnel.
    pub(crate) fn count<C, T>(
        &mut self,
        attach: impl Fn(&Metered) -> Result<C>,
        detach: impl Fn(C) -> Result<T>,
    ) -> Result<Counted<T>> {
        let sent = self.load.sent;
        let mut counters = Vec::new();
        let processes = self.session.processes.iter();
        for process in processes.filter(|it| it.role.is_tunnel()) {
            counters.push((process.role, attach(process)?, self.done()));
        }
        self.work()?;
        let (mut counted, mut last) = (Vec::new(), 0.0);
        for (role, counter, began) in counters {
            last = self.units(began)?;
            counted.push((role, detach(counter)?, last));
        }
        let mut values = vec![("units", last)];
        if let Some((before, after)) = sent.zip(self.load.sent) {
            let lost = 1.0 - last * self.shown / (after - before).max(1) as f64;
            values.push(("lost_percent", lost * 100.0));
        }
        Ok((counted, values))
    }
}
