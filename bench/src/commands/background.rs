//! What the commands have in common that compare nothing: one tunnel, and visitors who come all the
//! time while something happens to it.

use anyhow::{Context as _, Error, Result, anyhow};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::lock;
use crate::harness::place::Place;
use crate::harness::spec::Spec;
use crate::harness::tunnel::{Setup, Tunnel};
use crate::load::connect;
use crate::load::service::Service;

/// How long the first visitor may take to get through a new tunnel.
pub(crate) const WORKS_LIMIT: Duration = Duration::from_secs(20);

/// How long a visitor sleeps before it checks whether it is to stop.
const STEP: Duration = Duration::from_millis(100);

/// Failures that are kept in words.
const WRONG_MAX: usize = 10;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct One {
    /// The tunnel, as --tunnels of the measurements has it
    #[arg(long, value_name = "TUNNEL", default_value = "qmux-dp")]
    pub(crate) tunnel: Spec,
    /// Where the programs are [default: where qmux-bench is]
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
}

impl One {
    pub(crate) fn setup(&self, place: Place) -> Result<Setup> {
        Setup::new(self.programs.as_ref(), place)
    }

    /// A service and the tunnel to it, when the first visitor has got through.
    pub(crate) fn start(
        &self,
        setup: &Setup,
        cores: usize,
        patience: Duration,
    ) -> Result<(Service, Tunnel)> {
        let service = Service::start(&setup.place, &[])?;
        let tunnel = Tunnel::start(&self.tunnel, setup, cores, service.address)?;
        connect::until_it_works(tunnel.visit, patience)
            .context("the first visitor through the tunnel")?;
        Ok((service, tunnel))
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Wrong(Arc<Mutex<Vec<String>>>);

impl Wrong {
    /// Adds something; what is too much is not kept.
    pub(crate) fn add(&self, wrong: &Error) {
        let mut all = lock(&self.0);
        if all.len() < WRONG_MAX {
            all.push(format!("{wrong:#}"));
        }
    }
}

/// Threads that visit until they are told to stop.
#[derive(Default)]
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub(crate) wrong: Wrong,
}

impl Background {
    /// Repeats some work, which says when it is to begin again.
    pub(crate) fn repeat(&mut self, mut work: impl FnMut() -> Instant + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let next = work();
                while Instant::now() < next && !stop.load(Ordering::Relaxed) {
                    thread::sleep(STEP.min(next.saturating_duration_since(Instant::now())));
                }
            }
        }));
    }

    /// Ends it; visitors under way are waited for. Returns what went wrong.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.wrong.add(&anyhow!("a visitor's thread panicked"));
            }
        }
        lock(&self.wrong.0).clone()
    }
}
