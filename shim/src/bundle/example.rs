//! The configuration that `moat spec` writes: what `runc spec` writes, for people to start from.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("example.json");

/// The example can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// One is there.
    #[error("{} exists; remove it first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes config.json into a bundle, and never over another.
///
/// # Errors
/// When there is one, or it can't be written.
pub fn write(bundle: &Path, rootless: Option<(u32, u32)>) -> Result<(), ExampleError> {
    let path = bundle.join("config.json");
    let text = rootless.map_or_else(|| EXAMPLE.to_owned(), |(uid, gid)| rootless_example(uid, gid));
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => ExampleError::Exists { path },
        _ => ExampleError::Write { path, source },
    })
}

/// The example for a user without privileges: a user namespace that maps their own ids, the host's
/// network, no limits, `/sys` bound because a new sysfs needs a network namespace of its own, and no
/// group ids that are not mapped.
fn rootless_example(uid: u32, gid: u32) -> String {
    let mut example: Value = serde_json::from_str(EXAMPLE).unwrap_or_default();
    let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
    let linux = &mut example["linux"];
    linux["uidMappings"] = map(uid);
    linux["gidMappings"] = map(gid);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(mounts) = example["mounts"].as_array_mut() {
        for mount in mounts {
            if mount["destination"] == "/sys" {
                let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
                *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
            } else if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| !option.as_str().is_some_and(|option| option.starts_with("gid=")));
            }
        }
    }
    serde_json::to_string_pretty(&example).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::config::Config;
    use crate::bundle::plan::{NamespaceKind, PlanOptions, plan};

    #[test]
    fn both_examples_make_a_plan() {
        for (text, user) in [(EXAMPLE.to_owned(), false), (rootless_example(1000, 1001), true)] {
            let config: Config = serde_json::from_str(&text).unwrap();
            let bundle = tempfile::tempdir().unwrap();
            std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
            let plan = plan("c1", bundle.path(), config, PlanOptions::default()).unwrap();
            assert_eq!(plan.namespaces.is_new(NamespaceKind::User), user);
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        }
    }

    #[test]
    fn an_example_is_never_written_over_a_configuration() {
        let bundle = tempfile::tempdir().unwrap();
        write(bundle.path(), None).unwrap();
        assert!(matches!(
            write(bundle.path(), None),
            Err(ExampleError::Exists { .. })
        ));
    }
}
