//! `features`: what this runtime can do, for engines (OCI features.md).

use serde_json::{Value, json};

use crate::bundle::plan::NamespaceKind;
use crate::bundle::{mount_options, names, seccomp};
use crate::isolation::ANNOTATION;

/// Oldest and newest version of the specification whose configurations are carried out.
const OCI_VERSION_MIN: &str = "1.0.0";
/// See [`OCI_VERSION_MIN`].
pub const OCI_VERSION_MAX: &str = "1.2.0";

/// The document.
pub fn features() -> Value {
    let mut namespaces: Vec<&str> = NamespaceKind::ALL.into_iter().map(NamespaceKind::name).collect();
    namespaces.sort_unstable();
    json!({
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION_MAX,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options::names().collect::<Vec<_>>(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": names::capabilities().collect::<Vec<_>>(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::actions().collect::<Vec<_>>(),
                "operators": seccomp::operators().collect::<Vec<_>>(),
                "archs": seccomp::architectures(),
                "knownFlags": seccomp::flags().collect::<Vec<_>>(),
                "supportedFlags": seccomp::flags().collect::<Vec<_>>(),
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {},
            "mountExtensions": {"idmap": {"enabled": false}},
            "netDevices": {"enabled": false},
        },
        "annotations": {"io.moat.version": env!("CARGO_PKG_VERSION"), "io.moat.isolations": "process,vm"},
        // It can only raise the isolation that the host asks for.
        "potentiallyUnsafeConfigAnnotations": [ANNOTATION],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_specifications_types_read() {
        let features: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();
        assert_eq!(features.oci_version_max(), OCI_VERSION_MAX);
        assert_eq!(features.hooks().as_ref().unwrap().len(), 6);
        assert!(
            features
                .linux()
                .as_ref()
                .unwrap()
                .namespaces()
                .as_ref()
                .unwrap()
                .len()
                >= 8
        );
    }
}
