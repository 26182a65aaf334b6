//! Rules of config.json, one function each. What the specification forbids and what moat does not carry
//! out is refused here, by the name of the field: nothing that a configuration asks for is dropped
//! silently.

use std::path::Path;

use super::config::{Config, Hook, Process};

/// A rule that does not hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ValidateError {
    /// The version is not one that moat follows.
    #[error("ociVersion {version:?} is not supported: moat follows 1.x of the specification")]
    Version {
        /// The version.
        version: String,
    },
    /// A field is missing.
    #[error("`{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that means nothing.
    #[error("`{field}` is {value:?}: {problem}")]
    Value {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two fields do not go together.
    #[error("`{field}` needs {needed}")]
    Needs {
        /// The field.
        field: String,
        /// What it needs.
        needed: &'static str,
    },
    /// Something that moat does not carry out.
    #[error("`{field}` is not supported{reason}")]
    Unsupported {
        /// The field.
        field: String,
        /// Why, with its punctuation, or empty.
        reason: &'static str,
    },
}

/// A value that means nothing.
pub fn bad_value(field: impl Into<String>, value: impl Into<String>, problem: &'static str) -> ValidateError {
    ValidateError::Value {
        field: field.into(),
        value: value.into(),
        problem,
    }
}

/// Checks all rules that concern single fields.
///
/// # Errors
/// The first rule that does not hold.
pub fn validate(config: &Config) -> Result<(), ValidateError> {
    version(config)?;
    supported(config)?;
    root(config)?;
    let process = config
        .process
        .as_ref()
        .ok_or(ValidateError::Missing { field: "process" })?;
    arguments(process)?;
    environment(process)?;
    working_directory(process)?;
    no_nul_bytes(config, process)?;
    hooks(config)?;
    paths_are_absolute("linux.maskedPaths", &config.linux.masked_paths)?;
    paths_are_absolute("linux.readonlyPaths", &config.linux.readonly_paths)?;
    oom_score(process)
}

/// config.md "Specification version": any 1.x is compatible with any other.
fn version(config: &Config) -> Result<(), ValidateError> {
    match config.oci_version.split_once('.') {
        Some(("1", _)) => Ok(()),
        _ => Err(ValidateError::Version {
            version: config.oci_version.clone(),
        }),
    }
}

/// What moat knows and does not carry out.
fn supported(config: &Config) -> Result<(), ValidateError> {
    let linux = &config.linux;
    let process = config.process.as_ref();
    let mapped = |mount: &super::config::Mount| {
        let option = mount
            .options
            .iter()
            .any(|option| option == "idmap" || option == "ridmap");
        option || !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty()
    };
    let asked = [
        (linux.intel_rdt.is_some(), "linux.intelRdt", ""),
        (linux.memory_policy.is_some(), "linux.memoryPolicy", ""),
        (!linux.net_devices.is_empty(), "linux.netDevices", ""),
        (!linux.mount_label.is_empty(), "linux.mountLabel", ""),
        (
            process.is_some_and(|process| process.io_priority.is_some()),
            "process.ioPriority",
            "",
        ),
        (
            process.is_some_and(|process| process.scheduler.is_some()),
            "process.scheduler",
            "",
        ),
        (
            config.mounts.iter().any(mapped),
            "mounts[].uidMappings",
            ": id-mapped mounts",
        ),
        (
            config.vm.is_some(),
            "vm",
            ": the host chooses kernel and hypervisor, not the bundle",
        ),
    ];
    if let Some((_, field, reason)) = asked.into_iter().find(|(is_asked, ..)| *is_asked) {
        return Err(ValidateError::Unsupported {
            field: field.to_owned(),
            reason,
        });
    }
    match &linux.personality {
        Some(personality) if personality.domain != "LINUX" => Err(ValidateError::Unsupported {
            field: "linux.personality.domain".to_owned(),
            reason: ": only LINUX",
        }),
        Some(personality) if !personality.flags.is_empty() => Err(ValidateError::Unsupported {
            field: "linux.personality.flags".to_owned(),
            reason: "",
        }),
        Some(_) | None => Ok(()),
    }
}

/// config.md "Root".
fn root(config: &Config) -> Result<(), ValidateError> {
    match &config.root {
        None => Err(ValidateError::Missing { field: "root" }),
        Some(root) if root.path.is_empty() => Err(ValidateError::Missing { field: "root.path" }),
        Some(_) => Ok(()),
    }
}

/// config.md "Process": at least one argument, and the first one names a program.
fn arguments(process: &Process) -> Result<(), ValidateError> {
    match process.args.first() {
        None => Err(ValidateError::Missing {
            field: "process.args",
        }),
        Some(program) if program.is_empty() => Err(bad_value(
            "process.args[0]",
            "",
            "the name of a program is needed",
        )),
        Some(_) => Ok(()),
    }
}

/// IEEE 1003.1 "environ": `name=value`.
fn environment(process: &Process) -> Result<(), ValidateError> {
    match process
        .env
        .iter()
        .find(|entry| entry.find('=').is_none_or(|at| at == 0))
    {
        Some(entry) => Err(bad_value("process.env", entry, "entries are written NAME=value")),
        None => Ok(()),
    }
}

/// config.md "Process": "This value MUST be an absolute path".
fn working_directory(process: &Process) -> Result<(), ValidateError> {
    if process.cwd.is_empty() {
        return Err(ValidateError::Missing { field: "process.cwd" });
    }
    if !Path::new(&process.cwd).is_absolute() {
        return Err(bad_value(
            "process.cwd",
            &process.cwd,
            "an absolute path is needed",
        ));
    }
    Ok(())
}

/// JSON can write a NUL byte, the kernel's strings can't hold one.
fn no_nul_bytes(config: &Config, process: &Process) -> Result<(), ValidateError> {
    let root = config.root.iter().map(|root| ("root.path", &root.path));
    let arguments = process.args.iter().map(|text| ("process.args", text));
    let environment = process.env.iter().map(|text| ("process.env", text));
    let directory = std::iter::once(("process.cwd", &process.cwd));
    let mounts = config.mounts.iter().flat_map(|mount| {
        let options = mount.options.iter().map(|option| ("mounts[].options", option));
        [
            ("mounts[].destination", &mount.destination),
            ("mounts[].source", &mount.source),
            ("mounts[].type", &mount.kind),
        ]
        .into_iter()
        .chain(options)
    });
    let masked = config
        .linux
        .masked_paths
        .iter()
        .map(|path| ("linux.maskedPaths", path));
    let readonly = config
        .linux
        .readonly_paths
        .iter()
        .map(|path| ("linux.readonlyPaths", path));
    let names = [("hostname", &config.hostname), ("domainname", &config.domainname)];
    let devices = config
        .linux
        .devices
        .iter()
        .map(|device| ("linux.devices[].path", &device.path));
    let all = root
        .chain(arguments)
        .chain(environment)
        .chain(directory)
        .chain(mounts);
    match all
        .chain(masked)
        .chain(readonly)
        .chain(names)
        .chain(devices)
        .find(|(_, text)| text.contains('\0'))
    {
        Some((field, text)) => Err(bad_value(
            field,
            text,
            "a NUL byte ends every string of the kernel",
        )),
        None => Ok(()),
    }
}

/// config.md "POSIX-platform Hooks": absolute path, positive timeout.
fn hooks(config: &Config) -> Result<(), ValidateError> {
    let hooks = &config.hooks;
    let lists: [(&str, &[Hook]); 6] = [
        ("hooks.prestart", &hooks.prestart),
        ("hooks.createRuntime", &hooks.create_runtime),
        ("hooks.createContainer", &hooks.create_container),
        ("hooks.startContainer", &hooks.start_container),
        ("hooks.poststart", &hooks.poststart),
        ("hooks.poststop", &hooks.poststop),
    ];
    for (name, list) in lists {
        for (index, hook) in list.iter().enumerate() {
            if !Path::new(&hook.path).is_absolute() {
                return Err(bad_value(
                    format!("{name}[{index}].path"),
                    &hook.path,
                    "an absolute path is needed",
                ));
            }
            if let Some(timeout) = hook.timeout.filter(|timeout| *timeout <= 0) {
                let field = format!("{name}[{index}].timeout");
                return Err(bad_value(
                    field,
                    timeout.to_string(),
                    "a number above zero is needed",
                ));
            }
        }
    }
    Ok(())
}

/// config-linux.md "Masked Paths", "Readonly Paths".
fn paths_are_absolute(field: &str, paths: &[String]) -> Result<(), ValidateError> {
    match paths.iter().find(|path| !Path::new(path).is_absolute()) {
        Some(path) => Err(bad_value(field, path, "an absolute path is needed")),
        None => Ok(()),
    }
}

/// proc(5): -1000 to 1000.
fn oom_score(process: &Process) -> Result<(), ValidateError> {
    match process
        .oom_score_adj
        .filter(|score| !(-1000..=1000).contains(score))
    {
        Some(score) => Err(bad_value(
            "process.oomScoreAdj",
            score.to_string(),
            "-1000 to 1000 is possible",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn valid() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["sh"], "env": ["A=b", "EMPTY="]},
        })
    }

    fn checked(change: impl FnOnce(&mut Value)) -> Result<(), ValidateError> {
        let mut value = valid();
        change(&mut value);
        validate(&serde_json::from_value(value).unwrap())
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        checked(change).unwrap_err().to_string()
    }

    #[test]
    fn the_smallest_configuration_is_valid() {
        checked(|_| {}).unwrap();
    }

    #[test]
    fn versions_other_than_1_are_refused() {
        for version in ["", "2.0.0", "0.9", "1", "x.1"] {
            assert!(
                refused(|c| c["ociVersion"] = json!(version)).contains("ociVersion"),
                "{version}"
            );
        }
        checked(|c| c["ociVersion"] = json!("1.0.2-dev")).unwrap();
    }

    #[test]
    fn each_needed_field_is_named_when_missing() {
        assert_eq!(refused(|c| c["root"] = json!(null)), "`root` is missing");
        assert_eq!(
            refused(|c| c["root"]["path"] = json!("")),
            "`root.path` is missing"
        );
        assert_eq!(refused(|c| c["process"] = json!(null)), "`process` is missing");
        assert_eq!(
            refused(|c| c["process"]["args"] = json!([])),
            "`process.args` is missing"
        );
        assert_eq!(
            refused(|c| c["process"]["cwd"] = json!("")),
            "`process.cwd` is missing"
        );
    }

    #[test]
    fn paths_must_be_absolute() {
        assert!(refused(|c| c["process"]["cwd"] = json!("tmp")).contains("process.cwd"));
        assert!(refused(|c| c["linux"] = json!({"maskedPaths": ["proc"]})).contains("maskedPaths"));
        assert!(refused(|c| c["linux"] = json!({"readonlyPaths": ["proc"]})).contains("readonlyPaths"));
        assert!(
            refused(|c| c["hooks"] = json!({"poststop": [{"path": "x"}]})).contains("hooks.poststop[0].path")
        );
    }

    #[test]
    fn environment_entries_need_a_name() {
        for entry in ["", "A", "=b"] {
            assert!(
                refused(|c| c["process"]["env"] = json!([entry])).contains("process.env"),
                "{entry}"
            );
        }
    }

    #[test]
    fn nul_bytes_are_refused_wherever_the_kernel_would_stop_reading() {
        assert!(refused(|c| c["process"]["args"] = json!(["sh", "a\0b"])).contains("process.args"));
        assert!(refused(|c| c["root"]["path"] = json!("/r\0")).contains("root.path"));
        let mounts = json!([{"destination": "/a", "options": ["size=1\0"]}]);
        assert!(refused(|c| c["mounts"] = mounts).contains("mounts[].options"));
    }

    #[test]
    fn a_hook_cannot_time_out_before_it_runs() {
        let hooks = json!({"prestart": [{"path": "/bin/true", "timeout": 0}]});
        assert!(refused(|c| c["hooks"] = hooks).contains("hooks.prestart[0].timeout"));
    }

    #[test]
    fn oom_scores_have_bounds() {
        checked(|c| c["process"]["oomScoreAdj"] = json!(-1000)).unwrap();
        assert!(refused(|c| c["process"]["oomScoreAdj"] = json!(1001)).contains("oomScoreAdj"));
    }

    #[test]
    fn what_is_not_carried_out_is_refused_by_name() {
        for (linux, field) in [
            (json!({"intelRdt": {}}), "linux.intelRdt"),
            (
                json!({"memoryPolicy": {"mode": "MPOL_BIND"}}),
                "linux.memoryPolicy",
            ),
            (json!({"netDevices": {"eth0": {}}}), "linux.netDevices"),
            (json!({"mountLabel": "x"}), "linux.mountLabel"),
            (
                json!({"personality": {"domain": "LINUX32"}}),
                "linux.personality.domain",
            ),
        ] {
            assert!(refused(|c| c["linux"] = linux).contains(field), "{field}");
        }
        assert!(refused(|c| c["vm"] = json!({"kernel": {"path": "/evil"}})).contains("`vm`"));
        assert!(refused(|c| c["process"]["scheduler"] = json!({})).contains("process.scheduler"));
        let mounts = json!([{"destination": "/a", "options": ["idmap"]}]);
        assert!(refused(|c| c["mounts"] = mounts).contains("id-mapped"));
    }
}
