//! Paths that are hidden or made read-only (OCI config-linux.md "Masked Paths", "Readonly Paths").
//!
//! What hides a file is the host's `/dev/null`, opened before the container's root is entered and
//! checked to be that device: the container's own could be a link to something worse (CVE-2025-31133).
//! All directories share one empty, read-only tmpfs.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
    mount::MountFlags,
};

use crate::{
    mounts,
    path::{Root, descriptor_path},
};

/// A path that could not be hidden or protected.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path:?}")]
pub struct MaskError {
    /// `hide` or `make read-only`.
    pub action: &'static str,
    /// The path, in the container.
    pub path: String,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Hides each path that exists.
pub(crate) fn hide(root: &Root, paths: &[String]) -> Result<(), MaskError> {
    if paths.is_empty() {
        return Ok(());
    }
    let failed = |path: &str, source: io::Error| MaskError {
        action: "hide",
        path: path.to_owned(),
        source,
    };
    let null = null_device().map_err(|source| failed("/dev/null", source))?;
    let null_path = descriptor_path(&null);
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = existing(root, path).map_err(|source| failed(path, source))? else {
            continue;
        };
        match rustix::mount::mount_bind(&null_path, descriptor_path(&target)) {
            Ok(()) => {}
            Err(Errno::NOTDIR) => {
                hide_directory(root, path, &target, &mut empty).map_err(|source| failed(path, source))?
            }
            Err(errno) => return Err(failed(path, errno.into())),
        }
    }
    Ok(())
}

/// Makes each path that exists read-only: the mount that shows it, not those below it, as runc does.
pub(crate) fn protect(root: &Root, paths: &[String]) -> Result<(), MaskError> {
    for path in paths {
        protect_one(root, path).map_err(|source| MaskError {
            action: "make read-only",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn protect_one(root: &Root, path: &str) -> io::Result<()> {
    let Some(target) = existing(root, path)? else {
        return Ok(());
    };
    let tree = mounts::clone_descriptor(&target, true)?;
    mounts::set_readonly(&tree)?;
    Ok(mounts::attach(&tree, &target)?)
}

fn existing(root: &Root, path: &str) -> io::Result<Option<OwnedFd>> {
    match root.resolve(path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn hide_directory(root: &Root, path: &str, target: &OwnedFd, empty: &mut Option<OwnedFd>) -> io::Result<()> {
    if let Some(empty) = empty {
        return Ok(rustix::mount::mount_bind(
            descriptor_path(empty),
            descriptor_path(target),
        )?);
    }
    let flags = (MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC).bits();
    mounts::mount_filesystem(
        "tmpfs",
        &descriptor_path(target),
        "tmpfs",
        flags.into(),
        "size=0k,nr_inodes=2",
    )?;
    *empty = Some(root.resolve(path)?);
    Ok(())
}

/// The real `/dev/null`.
fn null_device() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(null.as_fd())?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(io::Error::other("not character device 1:3"))
    }
}
