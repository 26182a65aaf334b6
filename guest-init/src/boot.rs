//! From the kernel's first process to a machine that a container can be built on.
//!
//! The root that the kernel unpacks (a ramfs) can't be left by `pivot_root`, which the workload's mount
//! namespace needs, so a tmpfs is moved over it first, as `switch_root` does.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, IntoRawFd},
    path::Path,
};

use moat_protocol::{
    phase::Phase,
    ports::{FS_TAG, GUEST_CELL},
};
use rustix::{
    fs::{Mode, OFlags},
    mount::MountFlags,
    net::{AddressFamily, SocketFlags, SocketType},
};

use crate::{console, machine::BootClock};

/// Where the cgroup tree is mounted.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// The guest's new root, below the kernel's.
const NEW_ROOT: &str = "/moat";

/// Set to "always": the guest's RAM is only a little more than the container's limit, and the kernel's own
/// guess would fail allocations that a container on a host's kernel gets; there, too, it is the limit that
/// ends whoever uses them.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Why the guest is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Descriptors 0 to 2.
    #[error("cannot reserve the standard descriptors")]
    Descriptors(#[source] io::Error),
    /// A directory.
    #[error("cannot make directory {path}")]
    Directory {
        /// Which.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file system.
    #[error("cannot mount {fstype} at {path}")]
    Mount {
        /// Its type.
        fstype: &'static str,
        /// Where.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The move onto the tmpfs.
    #[error("cannot enter the root at {NEW_ROOT}")]
    Root(#[source] io::Error),
}

/// Without a console the kernel starts init with descriptors 0 to 2 closed. Something must be there, or
/// the next files that are opened would be, and a child's streams would be put in their place.
///
/// # Errors
/// As `open(2)`.
pub fn reserve_standard_descriptors() -> Result<(), BootError> {
    loop {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open("/", flags, Mode::empty())
            .map_err(|errno| BootError::Descriptors(errno.into()))?;
        if place.as_raw_fd() > 2 {
            return Ok(());
        }
        // stays open for good
        let _ = place.into_raw_fd();
    }
}

/// Mounts the kernel's file systems, marks [`Phase::InitStarted`], brings `lo` up and prepares cgroups.
///
/// # Errors
/// When a mount fails that nothing works without. A missing `lo` or cgroup controller is said on the
/// console only.
pub fn prepare() -> Result<BootClock, BootError> {
    directory(NEW_ROOT)?;
    mount("tmpfs", NEW_ROOT, MountFlags::NOSUID, c"mode=755")?;
    for sub in ["dev", "proc", "sys", "run"] {
        directory(&format!("{NEW_ROOT}/{sub}"))?;
    }
    mount(
        "devtmpfs",
        &format!("{NEW_ROOT}/dev"),
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=755",
    )?;
    let clock = BootClock::open(Path::new(NEW_ROOT).join("dev/port"));
    clock.mark(Phase::InitStarted);
    enter_new_root().map_err(BootError::Root)?;

    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", strict, c"")?;
    mount("sysfs", "/sys", strict, c"")?;
    mount("cgroup2", CGROUPS, strict, c"nsdelegate")?;
    if let Err(error) = enable_controllers(Path::new(CGROUPS)) {
        console::say(&format!("cannot enable cgroup controllers: {error}"));
    }
    if let Err(error) = fs::write(OVERCOMMIT, "1") {
        console::say(&format!("cannot write {OVERCOMMIT}: {error}"));
    }
    if let Err(error) = loopback_up() {
        console::say(&format!("cannot bring lo up: {error}"));
    }
    Ok(clock)
}

/// Mounts the host's export: the container's root and volumes.
///
/// # Errors
/// Without the virtio-fs device; told to the host when it wants a container.
pub fn mount_cell() -> Result<(), BootError> {
    directory(GUEST_CELL)?;
    let data = c"";
    rustix::mount::mount(FS_TAG, GUEST_CELL, "virtiofs", MountFlags::empty(), data).map_err(|errno| {
        BootError::Mount {
            fstype: "virtiofs",
            path: GUEST_CELL.into(),
            source: errno.into(),
        }
    })
}

fn directory(path: &str) -> Result<(), BootError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(BootError::Directory {
            path: path.into(),
            source: errno.into(),
        }),
    }
}

fn mount(
    fstype: &'static str,
    path: &str,
    flags: MountFlags,
    data: &std::ffi::CStr,
) -> Result<(), BootError> {
    rustix::mount::mount(fstype, path, fstype, flags, data).map_err(|errno| BootError::Mount {
        fstype,
        path: path.into(),
        source: errno.into(),
    })
}

fn enter_new_root() -> io::Result<()> {
    rustix::process::chdir(NEW_ROOT)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Gives every controller of the root to its children, in one write where the kernel takes it.
fn enable_controllers(root: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if all.is_empty() {
        return Ok(());
    }
    fs::write(root.join("cgroup.subtree_control"), all.join(" "))
}

fn loopback_up() -> io::Result<()> {
    // any socket can carry the request; this family is always there
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    moat_workload::sys::interface_up(socket.as_fd(), "lo")
}
