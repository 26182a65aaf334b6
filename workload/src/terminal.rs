//! The process's terminal (OCI config.md "Process", `terminal`; runtime-linux.md "Dev symbolic links",
//! `/dev/console`).
//!
//! The pair comes from the container's own devpts, and both ends and `/dev/console` are reached by
//! descriptors that were checked, never by paths that the container could redirect meanwhile
//! (CVE-2025-52565).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use moat_protocol::workload_spec::ProcessSpec;
use rustix::{
    fs::{FileType, FsWord, Mode, OFlags},
    io::Errno,
    process::Uid,
    pty::OpenptFlags,
    termios::Winsize,
};

use crate::{mounts, path::Root, sys};

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS_SUPER_MAGIC: FsWord = 0x1cd1;

/// Whether the terminal is also mounted at `/dev/console`: for a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Over the file that [`crate::rootfs::build`] made.
    Mount,
    /// Not: for further processes of a container.
    Leave,
}

/// Why a process has no terminal.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a terminal in the container: {step}")]
pub struct TerminalError {
    /// What was being done.
    pub step: &'static str,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Opens a terminal of the given process's size and makes it the caller's controlling terminal and its
/// descriptors 0, 1 and 2. The root is entered, and the caller leads a session (`setsid`). Gives back
/// the master.
///
/// # Errors
/// Naming the step; most often the container has no devpts at `/dev/pts`.
pub fn open_terminal(process: &ProcessSpec, console: Console) -> Result<OwnedFd, TerminalError> {
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let root = Root::new(root.map_err(at("open the root"))?);
    let master = open_master(&root).map_err(at("open /dev/pts/ptmx"))?;
    rustix::pty::unlockpt(&master).map_err(at("unlock the terminal"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(at("open the terminal's slave"))?;
    if console == Console::Mount {
        mount_console(&root, &slave).map_err(at("mount it at /dev/console"))?;
    }
    let size = process.terminal.unwrap_or_default();
    if size.rows != 0 && size.columns != 0 {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&slave, size).map_err(at("set its size"))?;
    }
    match rustix::fs::fchown(&slave, Some(Uid::from_raw(process.user.uid)), None) {
        // an id that is not mapped in this user namespace
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(at("give it to the user")(errno)),
    }
    sys::set_controlling_terminal(slave.as_fd()).map_err(at("make it the controlling terminal"))?;
    rustix::stdio::dup2_stdin(&slave).map_err(at("make it standard input"))?;
    rustix::stdio::dup2_stdout(&slave).map_err(at("make it standard output"))?;
    rustix::stdio::dup2_stderr(&slave).map_err(at("make it standard error"))?;
    Ok(master)
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError {
        step,
        source: source.into(),
    }
}

fn open_master(root: &Root) -> io::Result<OwnedFd> {
    let place = root.resolve_without_links("/dev/pts/ptmx")?;
    let is_ptmx = {
        let stat = rustix::fs::fstat(&place)?;
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(5, 2)
    };
    if !is_ptmx || rustix::fs::fstatfs(&place)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("it is not the multiplexer of a devpts"));
    }
    // opened by path again, since the container may have no procfs to reopen `place` by; so checked again
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = root.open_without_links("/dev/pts/ptmx", flags)?;
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("it is not the multiplexer of a devpts"));
    }
    Ok(master)
}

fn mount_console(root: &Root, slave: &OwnedFd) -> io::Result<()> {
    let place = match root.resolve_without_links("/dev/console") {
        // a /dev that is bound from elsewhere and has none
        Err(Errno::NOENT) => return Ok(()),
        place => place?,
    };
    let tree = mounts::clone_descriptor(slave, false)?;
    Ok(mounts::attach(&tree, &place)?)
}
