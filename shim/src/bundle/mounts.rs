//! Mounts of config.json as [`MountSpec`]s (config.md "Mounts"; config-linux.md "Rootfs Mount
//! Propagation").

use std::path::Path;

use moat_protocol::workload_spec::{CgroupMount, MountSource, MountSpec};
use nix::libc;

use super::config::Mount;
use super::mount_options;
use super::validate::{ValidateError, bad_value};

/// Propagation of the root mount. Slave when not given, as runc does: mounts that the host makes below a
/// bind mount with `rslave` then still arrive.
pub(super) fn propagation(name: &str) -> Result<u64, ValidateError> {
    Ok(match name {
        "" | "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        _ => return Err(bad_value("linux.rootfsPropagation", name, "no such propagation")),
    })
}

pub(super) fn mounts(
    mounts: &[Mount],
    bundle: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<MountSpec>, ValidateError> {
    mounts
        .iter()
        .map(|entry| mount(entry, bundle, warnings))
        .collect()
}

fn mount(mount: &Mount, bundle: &Path, warnings: &mut Vec<String>) -> Result<MountSpec, ValidateError> {
    let mut options = mount_options::parse(&mount.options);
    let mut destination = mount.destination.clone();
    if destination.is_empty() {
        return Err(ValidateError::Missing {
            field: "mounts[].destination",
        });
    }
    if !Path::new(&destination).is_absolute() {
        // config.md wants an absolute path; images of old build tools have others, and runc takes them.
        warnings.push(format!(
            "the mount destination {destination:?} is taken as below /"
        ));
        destination.insert(0, '/');
    }
    if mount.kind == "bind" && options.bind.is_none() {
        options.bind = Some(false);
    }
    let source = match (options.bind, mount.kind.as_str()) {
        (Some(recursive), _) => {
            if mount.source.is_empty() {
                return Err(ValidateError::Missing {
                    field: "mounts[].source",
                });
            }
            if !options.data.is_empty() {
                let data = options.data.join(",");
                warnings.push(format!(
                    "options {data:?} have no effect on the bind mount on {destination}"
                ));
                options.data.clear();
            }
            let path = bundle.join(&mount.source);
            let path = path.to_str().ok_or_else(|| {
                bad_value("mounts[].source", &mount.source, "the bundle's path is not UTF-8")
            })?;
            MountSource::Bind {
                path: path.to_owned(),
                recursive,
            }
        }
        (None, "") => {
            return Err(ValidateError::Missing {
                field: "mounts[].type",
            });
        }
        // How it is provided depends on the kernel that provides it: the payload decides.
        (None, "cgroup" | "cgroup2") => MountSource::Cgroup(CgroupMount::V2),
        (None, fstype) => {
            let source = if mount.source.is_empty() {
                fstype
            } else {
                &mount.source
            };
            MountSource::Filesystem {
                fstype: fstype.to_owned(),
                source: source.to_owned(),
            }
        }
    };
    if options.copy_up && !matches!(&source, MountSource::Filesystem { fstype, .. } if fstype == "tmpfs") {
        return Err(ValidateError::Needs {
            field: "mounts[].options (tmpcopyup)".to_owned(),
            needed: "a tmpfs",
        });
    }
    Ok(options.into_spec(destination, source))
}
