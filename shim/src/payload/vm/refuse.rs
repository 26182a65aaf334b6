//! What a container in a microVM can't have, beyond its mounts, devices and labels (those are
//! [`super::translate`]'s): each is refused by name, none is ignored.

use crate::bundle::plan::{NamespaceKind, Plan};

/// A field, and why a guest can't have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct VmRefusal {
    /// Field of config.json or option of the command line.
    pub field: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// Looks for what can't be had.
///
/// # Errors
/// The first such thing.
pub fn check(plan: &Plan, preserve_fds: u32) -> Result<(), VmRefusal> {
    let own = |kind| plan.namespaces.is_new(kind);
    let has = |kind| plan.namespaces.has(kind);
    let refusals = [
        (
            !own(NamespaceKind::Pid),
            "linux.namespaces (pid)",
            "the guest's processes are not the host's: a new pid namespace is needed",
        ),
        (
            !own(NamespaceKind::Ipc),
            "linux.namespaces (ipc)",
            "the guest's kernel has its own System V IPC: a new ipc namespace is needed",
        ),
        (
            !has(NamespaceKind::Network),
            "linux.namespaces (network)",
            "a guest cannot use the host's network namespace: one of its own is needed",
        ),
        (
            plan.namespaces.is_joined(NamespaceKind::Mount),
            "linux.namespaces (mount)",
            "the VMM makes its own mount tree and cannot join another",
        ),
        (
            has(NamespaceKind::User),
            "linux.namespaces (user)",
            "user namespaces are not carried into the guest yet",
        ),
        (
            has(NamespaceKind::Time),
            "linux.namespaces (time)",
            "time namespaces are not carried into the guest yet",
        ),
        (
            !plan.hooks.start_container.is_empty(),
            "hooks.startContainer",
            "they would have to run in the guest, which is not done yet",
        ),
        (
            plan.workload.root.no_pivot,
            "--no-pivot",
            "the VMM's cell is always entered by pivot_root",
        ),
        (
            preserve_fds > 0,
            "--preserve-fds",
            "a descriptor of the host means nothing in the guest",
        ),
    ];
    match refusals.into_iter().find(|(refused, ..)| *refused) {
        Some((_, field, reason)) => Err(VmRefusal { field, reason }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bundle::plan::tests::planned;

    fn with_namespaces(kinds: &[&str]) -> Plan {
        let list: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        planned(|c| {
            c["linux"]["namespaces"] = json!(list);
            c["hostname"] = json!("");
        })
        .unwrap()
    }

    const ALL: [&str; 5] = ["mount", "pid", "ipc", "network", "uts"];

    #[test]
    fn each_namespace_of_the_host_is_refused_by_its_name() {
        assert_eq!(check(&with_namespaces(&ALL), 0), Ok(()));
        for missing in ["pid", "ipc", "network"] {
            let rest: Vec<&str> = ALL.into_iter().filter(|kind| *kind != missing).collect();
            let refusal = check(&with_namespaces(&rest), 0).unwrap_err();
            assert!(refusal.field.contains(missing), "{refusal}");
        }
    }

    #[test]
    fn preserved_descriptors_are_refused() {
        assert_eq!(
            check(&with_namespaces(&ALL), 1).unwrap_err().field,
            "--preserve-fds"
        );
    }
}
