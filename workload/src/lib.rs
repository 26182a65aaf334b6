//! From inside a cell on the host, or from inside a guest, become the workload that a
//! [`WorkloadSpec`](moat_protocol::workload_spec::WorkloadSpec) describes.
//!
//! The caller (the shim's container init, guest-init) makes the namespaces, maps their users, joins the
//! cgroup and runs hooks. In the new process it then calls, in this order:
//!
//! 1. `setsid` (the session is the caller's: `exec` and `create` want it at different times), and with a
//!    user namespace the ids 0 of it (files can't be made by an id that is not mapped: `EOVERFLOW`);
//! 2. [`rootfs::build`], hooks that want the host's view, [`rootfs::PreparedRoot::enter`];
//! 3. [`terminal::open_terminal`] when the process has a terminal, and hands the master away;
//! 4. [`exec::prepare`], waits for `start`, and [`exec::Launch::exec`].
//!
//! Everything here expects the process to have one thread, and nothing here prints or logs: errors go
//! to the caller, naming the path, the flags and the cause.

mod copy_up;
pub mod credentials;
mod devices;
pub mod exec;
pub mod limits;
mod masks;
pub mod mounts;
mod path;
mod procfs;
mod program;
pub mod rootfs;
pub mod seccomp;
pub mod sys;
pub mod terminal;
mod users;

/// A chain of errors as one line: outermost first, joined by `": "`.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
