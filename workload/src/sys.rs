//! Safe wrappers of the system calls that neither rustix nor nix offers safely; the crate's only
//! `unsafe`.
//!
//! Kernel interfaces: `clone3(2)`, `mount_setattr(2)`, `seccomp(2)`, `keyctl(2)`, `prctl(2)`,
//! `close_range(2)`, `random(4)`.
#![expect(unsafe_code, reason = "system calls that no crate wraps safely")]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::process::Pid;

/// What [`clone_process`] makes.
#[derive(Debug, Default)]
pub struct CloneRequest<'a> {
    /// `CLONE_NEW*` flags of the namespaces that the child gets anew.
    pub namespaces: u64,
    /// Directory of the cgroup (v2) that the child starts in (`CLONE_INTO_CGROUP`).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller, with its child's pid as it sees it.
    Parent {
        /// The child.
        pid: Pid,
        /// The child, by descriptor; close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process: a copy of the caller.
    Child,
}

const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `CLONE_NEWTIME`, which shares its bit with the exit signal of `clone(2)` and so is not an `int` flag.
const CLONE_NEWTIME: u64 = 0x80;

/// `fork`, with namespaces and a cgroup; the child sends SIGCHLD when it ends.
///
/// # Errors
/// `EBUSY` when the caller has more than one thread: the child would inherit locks that nobody
/// releases. `EINVAL` for flags that are not namespaces. Else as `clone3(2)`.
pub fn clone_process(request: &CloneRequest<'_>) -> io::Result<Cloned> {
    if request.namespaces & !(u64::from(NAMESPACES.cast_unsigned()) | CLONE_NEWTIME) != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if !single_threaded()? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is a plain structure of integers, for which zeroes are valid ("not used").
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = request.namespaces | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` and its size describe a live `clone_args`; `pidfd` outlives the call and is where
    // the kernel stores the descriptor in the parent. No stack, TLS, CLONE_VM or CLONE_THREAD is asked
    // for, so the child runs on its own copy of this address space, as after fork. The caller has one
    // thread (checked above), so no lock is held by a thread that the child lacks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match check(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("clone3 returned no pid"))?;
            // SAFETY: the kernel has stored a new descriptor in `pidfd` (CLONE_PIDFD), owned by nobody.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// `CLONE_INTO_CGROUP`: beyond 32 bits, so libc's `int` constant may not have it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Whether this process has one thread, as the kernel sees it.
///
/// # Errors
/// As `unshare(2)`.
pub fn single_threaded() -> io::Result<bool> {
    // SAFETY: unshare(CLONE_THREAD) changes nothing; the kernel only checks that the thread group has
    // one member (unshare(2), "CLONE_THREAD").
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    match check(result.into()) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// New namespaces for the calling process itself.
///
/// # Errors
/// As `unshare(2)`; `EINVAL` for flags that are not namespaces.
pub fn unshare_namespaces(namespaces: u64) -> io::Result<()> {
    let flags = i32::try_from(namespaces)
        .ok()
        .filter(|flags| flags & !(NAMESPACES | 0x80) == 0);
    let flags = flags.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: namespace flags do not touch memory or the descriptor table.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Joins the namespaces given by `flags` of the process behind a pidfd (Linux 5.8), all or none.
/// The pid namespace is that of later children.
///
/// # Errors
/// As `setns(2)`.
pub fn join_namespaces(pidfd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    let flags = i32::try_from(flags)
        .ok()
        .filter(|flags| flags & !(NAMESPACES | 0x80) == 0);
    let flags = flags.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: setns takes a descriptor and flags, and touches no memory of the caller.
    check(unsafe { libc::setns(pidfd.as_raw_fd(), flags) }.into()).map(drop)
}

/// Sends a signal, real-time ones included, to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` for a number that is no signal; else as `pidfd_send_signal(2)`.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let (pidfd, info) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: without a siginfo the call reads no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, info, 0) }).map(drop)
}

/// Changes of mount attributes (`struct mount_attr`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One `MS_*` propagation type, or 0 to leave it.
    pub propagation: u64,
    /// User namespace of an id-mapped mount.
    pub user_namespace: u64,
}

/// Applies attributes to the mount at `path`, or at the descriptor when `path` is empty; with all
/// mounts below it when `recursive`.
///
/// # Errors
/// As `mount_setattr(2)`.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: &MountAttributes,
) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is a NUL-terminated string and `attributes` a live `struct mount_attr` of the given
    // size, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<MountAttributes>(),
        )
    };
    check(result).map(drop)
}

/// Installs a seccomp filter for this thread.
///
/// # Errors
/// `EINVAL` for a program that is empty, longer than `BPF_MAXINSNS` or not whole instructions; else as
/// `seccomp(2)`. Flags that make the call return a listener are refused with `EINVAL`.
pub fn seccomp_set_filter(program: &[u8], flags: u32) -> io::Result<()> {
    const INSTRUCTION: usize = std::mem::size_of::<libc::sock_filter>();
    const NEW_LISTENER: u32 = 1 << 3;
    if !program.len().is_multiple_of(INSTRUCTION) || flags & NEW_LISTENER != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` points to `len` instructions in `filter`, which lives until after the call; the
    // kernel checks and copies them. A filter can end or fail later system calls, never corrupt memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match check(result)? {
        0 => Ok(()),
        // SECCOMP_FILTER_FLAG_TSYNC: the thread that could not be synchronised
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Makes a session keyring with this name and joins it, and lets its possessor's uid search it, as
/// runc does, so that a process that changes its user keeps the use of it.
///
/// # Errors
/// As `keyctl(2)`; `ENOSYS` where the kernel has no keys.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    // linux/key.h; all but KEY_USR_SEARCH is what the kernel gives a new session keyring
    const KEY_POS_ALL: u32 = 0x3f00_0000;
    const KEY_USR_VIEW: u32 = 0x0001_0000;
    const KEY_USR_READ: u32 = 0x0002_0000;
    const KEY_USR_SEARCH: u32 = 0x0008_0000;
    const KEY_USR_LINK: u32 = 0x0010_0000;
    const PERMISSIONS: u32 = KEY_POS_ALL | KEY_USR_VIEW | KEY_USR_READ | KEY_USR_SEARCH | KEY_USR_LINK;
    // SAFETY: the name is a NUL-terminated string, which the kernel copies.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = check(result)?;
    // SAFETY: takes a key's number and a mask; touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, keyring, PERMISSIONS) };
    check(result).map(drop)
}

/// `prctl` with integer arguments only.
fn prctl(option: libc::c_int, arguments: [libc::c_ulong; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: private to this file; every caller names an option whose arguments are integers, so the
    // kernel touches no memory of ours.
    check(unsafe { libc::prctl(option, a, b, c, d) }.into()).map(drop)
}

/// Drops a capability from the bounding set.
///
/// # Errors
/// `EINVAL` when the kernel has no such capability, `EPERM` without `CAP_SETPCAP`.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, [capability.into(), 0, 0, 0])
}

/// Adds a capability to the ambient set.
///
/// # Errors
/// `EPERM` when it is not both permitted and inheritable, `EINVAL` when the kernel has none such.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE.cast_unsigned();
    prctl(libc::PR_CAP_AMBIENT, [raise.into(), capability.into(), 0, 0])
}

/// Clears the ambient set.
///
/// # Errors
/// As `prctl(2)`.
pub fn clear_ambient() -> io::Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned();
    prctl(libc::PR_CAP_AMBIENT, [clear.into(), 0, 0, 0])
}

/// Sets a resource limit of this process; `u64::MAX` stands for none.
///
/// # Errors
/// As `prlimit(2)`.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is a live `struct rlimit64`, which the kernel reads; no old value is asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(result).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// As `close_range(2)`, which has the flag since Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed, so no owner in this program loses one.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// Gives the next program default signal handling: SIGPIPE, which Rust's start-up ignores and which
/// would stay ignored across `execve`, and an empty signal mask.
///
/// # Errors
/// As `sigaction(2)`.
pub fn default_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler of ours; it only changes what SIGPIPE does to this process.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `sigset_t` is an array of integers, for which zeroes are the empty set on Linux.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` is a live signal set, and no old one is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) }.into())
        .map(drop)
}

/// Makes writing to a pipe or socket without a reader an error (`EPIPE`) instead of a death: what the
/// start-up code of a Rust program does, for programs without it.
///
/// # Errors
/// As `sigaction(2)`.
pub fn ignore_sigpipe() -> io::Result<()> {
    // SAFETY: SIG_IGN installs no handler of ours; it only changes what SIGPIPE does to this process.
    match unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes a terminal the controlling one of this process, which must lead a session without one.
///
/// # Errors
/// As `TIOCSCTTY` of `tty_ioctl(4)`.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Most random bytes given to the kernel in one piece; more would only wait in its pool.
pub const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` of `linux/random.h` with room for [`MAX_ENTROPY`].
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY],
}

/// `_IOW('R', 0x03, int [2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Credits random bytes to the kernel's pool and makes it reseed from them at once. Bytes beyond
/// [`MAX_ENTROPY`] are not used. `random` is `/dev/random` or `/dev/urandom`.
///
/// # Errors
/// As those of `random(4)`: `EPERM` without `CAP_SYS_ADMIN`, `ENOTTY` for another file.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let random = random.as_fd().as_raw_fd();
    let used = bytes.len().min(MAX_ENTROPY);
    let mut info = RandPoolInfo {
        entropy_count: 0,
        buf_size: 0,
        buf: [0; MAX_ENTROPY],
    };
    info.buf[..used].copy_from_slice(&bytes[..used]);
    info.buf_size = i32::try_from(used).map_err(|_| io::ErrorKind::InvalidInput)?;
    info.entropy_count = info.buf_size * 8;
    // SAFETY: `info` is laid out as `struct rand_pool_info`, and `buf_size` counts bytes within `buf`.
    check(unsafe { libc::ioctl(random, RNDADDENTROPY, &raw const info) }.into())?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(unsafe { libc::ioctl(random, RNDRESEEDCRNG) }.into()).map(drop)
}

/// Brings a network interface of the caller's network namespace up.
///
/// # Errors
/// As `netdevice(7)`; `EINVAL` for a name longer than an interface's can be.
pub fn interface_up(socket: impl AsFd, name: &str) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `ifreq` consists of integers and unions of integers and pointers, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: SIOCGIFFLAGS reads the name in `request`, NUL-terminated since shorter than its field, and
    // writes its flags; `request` is a live `struct ifreq`.
    check(unsafe { libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request) }.into())?;
    // SAFETY: the kernel has just stored flags in this member of the union, and any bits are valid there.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    // SAFETY: as for SIOCGIFFLAGS, but only read by the kernel.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// `IFF_UP`, in the type of the flags in `struct ifreq`.
const UP: libc::c_short = 1;

/// A system call's result, or the error that `errno` names.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // the test harness runs each test on a thread beside its main thread
        let error = clone_process(&CloneRequest::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn flags_that_are_no_namespaces_are_refused() {
        let request = CloneRequest {
            namespaces: 0x100, /* CLONE_VM */
            cgroup: None,
        };
        assert_eq!(
            clone_process(&request).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            unshare_namespaces(0x400).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_filter_that_is_not_whole_instructions_is_refused() {
        assert_eq!(
            seccomp_set_filter(&[0; 9], 0).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(seccomp_set_filter(&[], 0).is_err());
    }
}
