//! Files of the container's procfs, opened so that nothing else can stand in for them: an image may
//! put a link at `/proc`, a racing mount may cover a file of it with another (CVE-2025-52881).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags},
    io::Errno,
};

use crate::path::open_at;

/// Inode number of procfs's root (`PROC_ROOT_INO`).
const PROC_ROOT_INODE: u64 = 1;

/// A procfs that is known to be one.
#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// The procfs at `proc` below a directory, which is the container's root or `/`.
    pub(crate) fn open(root: BorrowedFd<'_>) -> io::Result<Procfs> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let proc = open_at(root, "proc", OFlags::PATH | OFlags::DIRECTORY, resolve)?;
        let filesystem = rustix::fs::fstatfs(&proc)?;
        let is_root = rustix::fs::fstat(&proc)?.st_ino == PROC_ROOT_INODE;
        if filesystem.f_type != PROC_SUPER_MAGIC || !is_root {
            return Err(io::Error::other(
                "/proc in the container is not the root of a procfs",
            ));
        }
        Ok(Procfs(proc))
    }

    /// Of the caller, once its root is entered.
    pub(crate) fn own() -> io::Result<Procfs> {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Procfs::open(root.as_fd())
    }

    /// Writes `value` to the file at `path` below this procfs, in one piece.
    pub(crate) fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let file = open_at(self.0.as_fd(), path, OFlags::WRONLY, resolve).map_err(|error| match error {
            Errno::XDEV => io::Error::other(format!("something is mounted over /proc/{path}")),
            error => error.into(),
        })?;
        match rustix::io::write(&file, value.as_bytes())? {
            written if written == value.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Writes to a file of the calling process, such as `oom_score_adj`.
    pub(crate) fn write_own(&self, file: &str, value: &str) -> io::Result<()> {
        self.write(&format!("{}/{file}", rustix::process::getpid()), value)
    }
}

/// Path below `/proc` of a kernel parameter: dots separate, and a slash stands for a dot in a name, as
/// in `sysctl(8)` (`net.ipv4.conf.eth0/1.forwarding`).
pub(crate) fn sysctl_path(name: &str) -> String {
    let swapped = name.chars().map(|character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    // all separators are slashes: the other spelling that sysctl(8) accepts
    if name.contains('/') && !name.contains('.') {
        return format!("sys/{name}");
    }
    format!("sys/{}", swapped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_become_paths() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "sys/net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.forwarding"),
            "sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(sysctl_path("kernel/msgmax"), "sys/kernel/msgmax");
    }

    proptest::proptest! {
        #[test]
        fn every_parameter_is_below_sys(name in ".{0,40}") {
            proptest::prop_assert!(sysctl_path(&name).starts_with("sys/"));
        }
    }

    #[test]
    fn a_directory_is_no_procfs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        assert!(Procfs::open(root.as_fd()).is_err());
    }

    #[test]
    fn a_parameter_path_cannot_leave_procfs() {
        let root = std::fs::File::open("/").unwrap();
        let procfs = Procfs::open(root.as_fd()).unwrap();
        let error = procfs.write("sys/../../etc/hostname", "x").unwrap_err();
        assert!(error.raw_os_error() == Some(libc::EXDEV) || error.to_string().contains("mounted over"));
    }
}
