//! What runs inside a cell. The cell builds everything around it the same way; a payload builds the
//! mount tree that it wants, gets ready up to the barrier of `start`, and serves the control socket.
//!
//! A payload is made by the command line, before the cell exists, and goes into the container's init by
//! the clone: what the cell will hide from it (devices, files of the host, standard streams) is opened by
//! its constructor.

pub mod process;
pub mod relay;
pub mod vm;

use std::os::unix::net::UnixListener;

use crate::bundle::plan::Plan;
use crate::bundle::resources::Resources;

/// Why a payload failed. Its chain of causes travels to the command line as text.
pub type PayloadError = Box<dyn std::error::Error>;

/// Something that can run inside a cell. The methods are called once, in the order written here; all
/// but the first in the container's init, which has one thread whenever `build_root` begins.
pub trait Payload {
    /// The limits of the container's cgroup, given those of the configuration: a payload that needs
    /// memory of its own adds it.
    fn limits(&self, resources: &Resources) -> Resources {
        resources.clone()
    }

    /// The namespaces are joined, nothing is mounted yet: work that can go on beside the mounts starts.
    ///
    /// # Errors
    /// When the container can't be created.
    fn begin(&mut self, _plan: &Plan) -> Result<(), PayloadError> {
        Ok(())
    }

    /// Builds the mount tree, up to but not including `pivot_root`: createContainer hooks look at it.
    ///
    /// # Errors
    /// When the container can't be created.
    fn build_root(&mut self, plan: &Plan) -> Result<(), PayloadError>;

    /// Enters the tree and gets everything ready, up to the barrier of `start`.
    ///
    /// # Errors
    /// When the container can't be created.
    fn prepare(&mut self, plan: &Plan) -> Result<(), PayloadError>;

    /// Serves the control socket until the container ends. Never returns: a payload becomes another
    /// program, or ends the process with the workload's status.
    fn serve(self: Box<Self>, plan: &Plan, control: UnixListener) -> !;
}
