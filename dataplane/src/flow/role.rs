//! The part of a core that belongs to one role: the core's context, its TCP flows, and the mail to
//! the same role on other cores.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::watch::TcpFlows;
use crate::core::CoreContext;
use crate::core::mailbox::Post;

/// The context of one role on one core, whose mail to other cores is a `T`.
pub(crate) struct RoleContext<T> {
    /// The state that all parts of the core share, which is also reached by [`Deref`].
    pub(crate) core: Rc<CoreContext>,
    /// Sends mail to the other cores.
    pub(crate) post: Arc<dyn Post<T>>,
    /// The core's TCP flows, and what each of them waits for.
    pub(crate) flows: Rc<TcpFlows>,
}

impl<T> RoleContext<T> {
    /// The context of one role.
    pub(crate) fn new(
        core: &Rc<CoreContext>,
        post: Arc<dyn Post<T>>,
        flows: &Rc<TcpFlows>,
    ) -> Rc<RoleContext<T>> {
        Rc::new(RoleContext {
            core: Rc::clone(core),
            post,
            flows: Rc::clone(flows),
        })
    }
}

impl<T> Deref for RoleContext<T> {
    type Target = CoreContext;

    fn deref(&self) -> &CoreContext {
        &self.core
    }
}

impl<T> fmt::Debug for RoleContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleContext(core {})", self.index)
    }
}
