//! For tests: a door with one service, whose clients name themselves.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::LoadBalancer;
use qmux_proto::control::Protocols;

use super::registry::{Applicant, InstanceId, Joined, NotJoined, Offered, Registry};
use super::service::ClientPool;

/// A door with one service; the service's pool by [`Deref`].
#[derive(Debug)]
pub(crate) struct OneService {
    registry: Arc<Registry>,
    /// The service's clients.
    pub(crate) pool: Arc<ClientPool>,
}

impl OneService {
    /// A service without clients.
    pub(crate) fn new(balancer: LoadBalancer, cores: usize) -> OneService {
        let pool = Arc::new(ClientPool::new(balancer));
        let registry = Arc::new(Registry::of_pools(&[Arc::clone(&pool)], cores));
        OneService { registry, pool }
    }

    /// Registers a lane of a client that offers the service.
    pub(crate) fn join(
        &self,
        name: &str,
        instance_id: InstanceId,
        address: Option<SocketAddr>,
        core: usize,
        now: Instant,
    ) -> Result<Joined, NotJoined> {
        let applicant = Applicant {
            name,
            has_entry: false,
            instance_id,
            address,
            services: &[Offered {
                service: 0,
                protocols: Protocols::BOTH,
            }],
            claim: None,
            generation: 0,
        };
        self.registry.join(&applicant, core, now)
    }
}

impl Deref for OneService {
    type Target = ClientPool;

    fn deref(&self) -> &ClientPool {
        &self.pool
    }
}
