//! `state`: what is true of a container, as JSON that engines parse (runtime.md "State", with the fields
//! that runc adds).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Error;
use super::observe;
use super::status::Status;
use super::store::{ContainerDirectory, Store};
use crate::bundle::plan::Plan;
use crate::isolation::Isolation;

/// The state that hooks get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// `ociVersion` of the configuration.
    pub oci_version: &'a str,
    /// Id.
    pub id: &'a str,
    /// Status.
    pub status: Status,
    /// Pid of init; left out when there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// Bundle.
    pub bundle: &'a Path,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl<'a> HookState<'a> {
    /// Of a container that is being made.
    pub fn of_plan(plan: &'a Plan, status: Status, pid: i32) -> HookState<'a> {
        HookState {
            oci_version: &plan.oci_version,
            id: &plan.id,
            status,
            pid,
            bundle: &plan.bundle,
            annotations: &plan.annotations,
        }
    }
}

/// The state as `state` and `list` print it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// Id.
    pub id: String,
    /// Pid of init, 0 when it has ended.
    pub pid: i32,
    /// Status.
    pub status: Status,
    /// Bundle.
    pub bundle: String,
    /// Root file system.
    pub rootfs: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the user who made it; `state` leaves it empty, as runc does.
    pub owner: String,
    /// Its wall.
    pub isolation: Isolation,
}

/// The state of a container.
///
/// # Errors
/// When there is none with this id.
pub fn state(store: &Store, id: &str) -> Result<State, Error> {
    of(&store.open(id)?)
}

/// The state of the container in this directory.
///
/// # Errors
/// When what is remembered of it can't be understood.
pub fn of(directory: &ContainerDirectory) -> Result<State, Error> {
    let memory = directory.read()?;
    let status = observe::status(directory, &memory);
    let pid = match (status, memory.init) {
        (Status::Stopped, _) | (_, None) => 0,
        (Status::Creating | Status::Created | Status::Running | Status::Paused, Some(init)) => init.pid,
    };
    let id = directory.id().to_owned();
    Ok(match memory.record {
        // Broken off before anything was written, or about to be.
        None => State {
            oci_version: String::new(),
            id,
            pid,
            status,
            bundle: String::new(),
            rootfs: String::new(),
            created: String::new(),
            annotations: BTreeMap::new(),
            owner: String::new(),
            isolation: Isolation::Process,
        },
        Some(record) => State {
            oci_version: record.oci_version,
            id,
            pid,
            status,
            bundle: record.bundle.to_string_lossy().into_owned(),
            rootfs: record.rootfs.to_string_lossy().into_owned(),
            created: record.created,
            annotations: record.annotations,
            owner: String::new(),
            isolation: record.isolation,
        },
    })
}
