//! What can go wrong with a cgroup.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use super::hierarchy;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mounted hierarchies can't be found out.
    #[error("cannot find the mounted cgroup hierarchies")]
    Find(#[source] io::Error),
    /// Limits are asked for and there is nothing to set them with.
    #[error(
        "limits are asked for, but no cgroup hierarchy is mounted on {}",
        hierarchy::MOUNT_POINT
    )]
    NoHierarchy,
    /// `slice:prefix:name` or `--systemd-cgroup`.
    #[error("the systemd cgroup driver is asked for, which moat does not have yet")]
    Systemd,
    /// A directory can't be made.
    #[error("cannot make the cgroup {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container's cgroup is somebody else's.
    #[error("the cgroup {} has processes in it already", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A limit is not accepted.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file of a limit is missing, because its controller is.
    #[error("cannot set {file} of {}: its controller is not available in this cgroup", path.display())]
    NoController {
        /// The cgroup.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit that this version of cgroups does not have.
    #[error("`linux.resources.{field}` cannot be set: {reason}")]
    Unsupported {
        /// The field.
        field: Cow<'static, str>,
        /// Why.
        reason: &'static str,
    },
    /// The device filter is not accepted.
    #[error("cannot attach the device filter to {}", path.display())]
    DeviceFilter {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process can't be signalled.
    #[error("cannot send signal {number} to the processes of {}", path.display())]
    Signal {
        /// The cgroup.
        path: PathBuf,
        /// The signal.
        number: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory can't be removed.
    #[error("cannot remove the cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
