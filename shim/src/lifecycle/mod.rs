//! The life of a container (OCI runtime.md "Lifecycle"): what is remembered of it, what is true of it,
//! and what each verb does. One file per verb; none of them knows of namespaces or virtual machines.

pub mod create;
pub mod delete;
pub mod hooks;
pub mod kill;
pub mod list;
pub mod observe;
pub mod record;
pub mod run;
pub mod start;
pub mod state;
pub mod status;
pub mod store;

use std::io;
use std::path::PathBuf;

use self::hooks::HookError;
use self::status::Refusal;
use self::store::StoreError;
use crate::bundle::load::LoadError;
use crate::bundle::plan::PlanError;
use crate::cell::cgroup::CgroupError;
use crate::cell::namespaces::NamespaceError;
use crate::cell::sync::SyncError;
use crate::cell::userns::UsernsError;
use crate::control::ControlError;
use crate::isolation::UnknownIsolation;
use crate::isolation::choose::Refusal as IsolationRefusal;
use crate::payload::PayloadError;

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is remembered of containers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The verb is not possible in the container's state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// config.json can't be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// config.json can't be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The annotation names no isolation.
    #[error("annotation {}", crate::isolation::ANNOTATION)]
    Annotation(#[from] UnknownIsolation),
    /// The chosen isolation can't be had.
    #[error(transparent)]
    Isolation(#[from] IsolationRefusal),
    /// The payload can't be made.
    #[error(transparent)]
    Payload(PayloadError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// init can't be made.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The user namespace's maps.
    #[error(transparent)]
    Userns(#[from] UsernsError),
    /// The line to init.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// init failed, in its own words.
    #[error("cannot create the container: {0}")]
    Container(String),
    /// init ended without a word.
    #[error("the container's init ended before it was ready")]
    InitDied,
    /// init can't be looked at.
    #[error("cannot look at the container's init")]
    Init(#[source] io::Error),
    /// The workload could not be started.
    #[error("cannot start the container")]
    Start(#[source] ControlError),
    /// A terminal is asked for and nobody takes it.
    #[error("the process has a terminal, and nobody to give it to")]
    ConsoleSocketNeeded,
    /// A console socket is given and no terminal is asked for.
    #[error("a console socket is given, but the process has no terminal")]
    ConsoleSocketUnused,
    /// The console socket can't be reached.
    #[error("cannot connect to the console socket {}", path.display())]
    ConsoleSocket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal of this process can't be used.
    #[error("cannot {action}")]
    Terminal {
        /// What was done.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A signal can't be sent.
    #[error("cannot send signal {number} to process {pid}")]
    Signal {
        /// The signal.
        number: u8,
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Waiting failed.
    #[error("cannot wait for the container")]
    Wait(#[source] io::Error),
    /// Another verb holds the container.
    #[error("another command is at work on container {id}")]
    Busy {
        /// The container.
        id: String,
    },
    /// A killed init does not end.
    #[error("the container's init, process {pid}, does not end although it was killed")]
    StillRunning {
        /// Its pid.
        pid: i32,
    },
}
