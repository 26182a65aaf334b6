//! The container's init, from the clone to the barrier of `start`: the child's side of [`super::sync`].
//!
//! It has one thread, and ends when the command line ends before the container is prepared.

use std::io;
use std::os::unix::net::UnixListener;

use moat_workload::sys;
use nix::sys::signal::SigSet;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Gid, Signal, Uid};

use super::cgroup::Version;
use super::namespaces;
use super::sync::{FromInit, SyncError, SyncSocket, ToInit};
use crate::bundle::plan::{NamespaceKind, Plan};
use crate::lifecycle::hooks::{self, HookError};
use crate::payload::{Payload, PayloadError};
use crate::report::error::chain;

/// What failed in the container's init.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("cannot {action}")]
    Step {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot create the container: the command line has gone")]
    Abandoned(#[source] SyncError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> InitError {
    move |error| InitError::Step {
        action,
        source: error.into(),
    }
}

/// What init is given.
pub struct Init<'a> {
    /// The container.
    pub plan: &'a Plan,
    /// What to run in it.
    pub payload: Box<dyn Payload>,
    /// Line to the command line.
    pub sync: SyncSocket,
    /// Where `start` will knock.
    pub control: UnixListener,
    /// Of the container's cgroup.
    pub cgroup: Version,
}

/// Creates the container from within, and serves it. The process ends here.
pub fn run(mut init: Init<'_>) -> ! {
    if let Err(error) = init.create() {
        // Nobody to tell it to is nobody who wants to know.
        let _told = init.sync.send_failure(&chain(&error));
        std::process::exit(1)
    }
    if init.sync.send(&FromInit::Prepared).is_err() {
        std::process::exit(1)
    }
    let Init {
        plan,
        payload,
        sync,
        control,
        ..
    } = init;
    drop(sync);
    payload.serve(plan, control)
}

impl Init<'_> {
    fn create(&mut self) -> Result<(), InitError> {
        let namespaces = &self.plan.namespaces;
        let new_user_namespace = namespaces.is_new(NamespaceKind::User);
        let new_cgroup_namespace = namespaces.is_new(NamespaceKind::Cgroup);
        // `run` blocks what it forwards; nothing of that is meant for here.
        let clear = SigSet::empty().thread_set_mask();
        clear.map_err(step("clear the signal mask"))?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(step("follow the command line"))?;
        rustix::process::setsid().map_err(step("start a session"))?;
        if new_user_namespace {
            self.expect(ToInit::Proceed)?;
            become_root()?;
        }
        // Its root is the cgroup of who makes it: on v1 the command line is still moving this process.
        let moved_later = self.cgroup == Version::V1 && !new_user_namespace;
        if new_cgroup_namespace && !moved_later {
            namespaces::new_cgroup_namespace().map_err(step("make a cgroup namespace"))?;
        }
        if namespaces.is_new(NamespaceKind::Network) {
            loopback_up().map_err(step("bring the loopback interface up"))?;
        }
        self.payload.begin(self.plan)?;
        self.payload.build_root(self.plan)?;
        if !new_user_namespace {
            self.expect(ToInit::Proceed)?;
        }
        if new_cgroup_namespace && moved_later {
            namespaces::new_cgroup_namespace().map_err(step("make a cgroup namespace"))?;
        }
        if hooks::wait_for_root(&self.plan.hooks) {
            self.sync
                .send(&FromInit::RootBuilt)
                .map_err(InitError::Abandoned)?;
            self.expect(ToInit::HooksDone)?;
            hooks::create_container(self.plan)?;
        }
        self.payload.prepare(self.plan)?;
        rustix::process::set_parent_process_death_signal(None).map_err(step("outlive the command line"))
    }

    fn expect(&self, expected: ToInit) -> Result<(), InitError> {
        match self.sync.receive::<ToInit>() {
            Ok(message) if message == expected => Ok(()),
            Ok(_) => Err(InitError::Abandoned(SyncError::Ended)),
            Err(error) => Err(InitError::Abandoned(error)),
        }
    }
}

/// In a new user namespace, its maps written: takes on id 0 there. After a change of ids the kernel
/// gives `/proc/self` to the root of the namespace that the program was started in, which is the host's;
/// being dumpable gives it back, and nobody else is in this user namespace yet.
fn become_root() -> Result<(), InitError> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    match rustix::thread::set_thread_groups(&[]) {
        // Switched off for unprivileged maps of groups.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(step("clear the groups")(error)),
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(step("become group 0 of the user namespace"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("become user 0 of the user namespace"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(step("own /proc/self"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("follow the command line"))
}

fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sys::interface_up(&socket, "lo")
}
