//! What is remembered of a container. Each fact is written once, when it becomes true, under a
//! temporary name that is then renamed; so whatever ends moat in between, what is there is whole. Nothing
//! is synced to disk: the state lives in `/run`, which does not outlive the processes it speaks of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bundle::config::Hook;
use crate::cell::cgroup::Cgroup;
use crate::isolation::Isolation;

/// Version of the record's form.
pub const VERSION: u32 = 1;

/// What is known before anything of the container exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// Its wall.
    pub isolation: Isolation,
    /// Why this wall.
    pub reason: String,
    /// When it was created: RFC 3339, UTC.
    pub created: String,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Whether init is pid 1 of its own namespace, so that its end is everybody's.
    pub own_pid_namespace: bool,
    /// Hooks that later verbs run.
    pub poststart: Vec<Hook>,
    /// Likewise.
    pub poststop: Vec<Hook>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A process, told apart from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id, in the namespace of the command line.
    pub pid: i32,
    /// Clock ticks between boot and its start (proc(5), stat, field 22).
    pub start: u64,
}
