//! `/dev` of a container: nodes and the links that programs expect (OCI config-linux.md "Devices",
//! "Default Devices"; runtime-linux.md "Dev symbolic links").

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use moat_protocol::workload_spec::{DeviceKind, DeviceSpec, MountSource, WorkloadSpec};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
    process::{Gid, Uid},
};

use crate::{
    mounts,
    path::{Root, clean, split},
};

/// Links that every container has. `/dev/core` only where the kernel has `/proc/kcore`; it is masked in
/// most containers, but programs look for the name.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Why `/dev` could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The directory that a node belongs in.
    #[error("cannot make the directory of device {path:?}")]
    Parent {
        /// The node.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The node itself.
    #[error("cannot make device {path:?} ({node})")]
    Node {
        /// The node.
        path: String,
        /// Kind and number.
        node: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Something else is already there.
    #[error("{path:?} is already there and is not device {node}")]
    InTheWay {
        /// The node.
        path: String,
        /// Kind and number.
        node: String,
    },
    /// A link in `/dev`.
    #[error("cannot make link /dev/{name}")]
    Link {
        /// Name of the link.
        name: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The mount point of the terminal.
    #[error("cannot make /dev/console")]
    Console(#[source] io::Error),
}

/// Makes nodes and links, and the file that a terminal is mounted over.
pub(crate) fn make(root: &Root, spec: &WorkloadSpec) -> Result<(), DeviceError> {
    let mut parent: Option<(String, OwnedFd)> = None;
    for device in &spec.devices {
        let path = clean(&device.path);
        let (directory, name) = split(&path);
        if parent.as_ref().is_none_or(|(known, _)| known != directory) {
            let made = root.make_directories(directory);
            let made = made.map_err(|source| DeviceError::Parent {
                path: path.clone(),
                source,
            })?;
            parent = Some((directory.to_owned(), made));
        }
        if let Some((_, directory)) = &parent {
            make_node(directory.as_fd(), name, device)?;
        }
    }
    if dev_is_foreign(spec) {
        return Ok(());
    }
    let dev = match parent {
        Some((path, dev)) if path == "/dev" => dev,
        _ => root
            .make_directories("/dev")
            .map_err(|source| DeviceError::Link { name: "", source })?,
    };
    make_links(dev.as_fd())?;
    if spec.process.terminal.is_some() {
        make_console(dev.as_fd()).map_err(DeviceError::Console)?;
    }
    Ok(())
}

/// Whether `/dev` is a bind mount, in which runtimes make no links.
fn dev_is_foreign(spec: &WorkloadSpec) -> bool {
    spec.mounts
        .iter()
        .any(|mount| matches!(mount.source, MountSource::Bind { .. }) && clean(&mount.destination) == "/dev")
}

fn make_node(directory: BorrowedFd<'_>, name: &str, device: &DeviceSpec) -> Result<(), DeviceError> {
    let (kind, number) = match device.kind {
        DeviceKind::Character { major, minor } => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        DeviceKind::Block { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        DeviceKind::Fifo => (FileType::Fifo, 0),
    };
    let failed = |source: io::Error| DeviceError::Node {
        path: device.path.clone(),
        node: describe(device.kind),
        source,
    };
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    match rustix::fs::mknodat(directory, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed(errno.into()))?;
            if FileType::from_raw_mode(there.st_mode) == kind && there.st_rdev == number {
                return Ok(());
            }
            return Err(DeviceError::InTheWay {
                path: device.path.clone(),
                node: describe(device.kind),
            });
        }
        // a user namespace: nodes can't be made there, but the host's can be shown
        Err(Errno::PERM) if kind != FileType::Fifo => {
            return bind_node(directory, name, device, kind, number).map_err(failed);
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    if device.uid != 0 || device.gid != 0 {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// Mounts the host's node of the same path, once it is known to be the same device.
fn bind_node(
    directory: BorrowedFd<'_>,
    name: &str,
    device: &DeviceSpec,
    kind: FileType,
    number: u64,
) -> io::Result<()> {
    let host = rustix::fs::openat(CWD, &device.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&host)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
        return Err(io::Error::other("the host's node of this path is another device"));
    }
    let tree = mounts::clone_descriptor(&host, false)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(mounts::attach(&tree, &place)?)
}

fn make_links(dev: BorrowedFd<'_>) -> Result<(), DeviceError> {
    let core = rustix::fs::access("/proc/kcore", rustix::fs::Access::EXISTS).is_ok();
    let core = core.then_some(("core", "/proc/kcore"));
    for (name, target) in LINKS.into_iter().chain(core) {
        match rustix::fs::symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            // without a tmpfs of its own, /dev is the image's and may be read-only
            Err(Errno::ROFS) => return Ok(()),
            Err(errno) => {
                return Err(DeviceError::Link {
                    name,
                    source: errno.into(),
                });
            }
        }
    }
    Ok(())
}

fn make_console(dev: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dev, "console", flags, Mode::from_raw_mode(0o600)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn describe(kind: DeviceKind) -> String {
    match kind {
        DeviceKind::Character { major, minor } => format!("character {major}:{minor}"),
        DeviceKind::Block { major, minor } => format!("block {major}:{minor}"),
        DeviceKind::Fifo => "FIFO".into(),
    }
}
