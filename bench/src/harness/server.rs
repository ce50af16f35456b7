//! A program behind the tunnel, on the far side: what visitors of other programs ask.

use std::net::SocketAddr;

use tempfile::TempDir;

use super::BenchError;
use super::meter::{Metered, Role};
use super::place::Place;
use qmux_harness::{Launch, Program, ports};

/// A server that is started. What it is ready by differs from one to another.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    pub(super) program: Program,
    // What it may write to, until it has ended.
    pub(super) directory: Option<TempDir>,
}

impl Server {
    /// Starts a server on an address of the far side. `port` is for a namespace of its own, where
    /// nothing else listens.
    pub(super) fn start(
        place: &Place,
        port: u16,
        launch: impl FnOnce(SocketAddr) -> Result<Launch, BenchError>,
    ) -> Result<Self, BenchError> {
        let address = match &place.far_namespace {
            None => ports::free(place.service_ip)?,
            Some(_) => SocketAddr::new(place.service_ip, port),
        };
        let program = launch(address)?.at(place.far()).start()?;
        Ok(Self::of(program, address))
    }

    /// A program that has said where it listens.
    pub fn of(program: Program, address: SocketAddr) -> Self {
        Self {
            address,
            program,
            directory: None,
        }
    }

    /// Its process, to be metered.
    pub fn process(&self) -> Metered {
        Metered {
            role: Role::Load,
            pid: self.program.pid(),
            command_line: self.program.command_line(),
        }
    }
}
