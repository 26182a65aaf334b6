//! The process of config.json as a [`ProcessSpec`]: names become numbers.

use moat_protocol::workload_spec::{CapabilitySets, ProcessSpec, RlimitSpec, TerminalSpec, UserSpec};

use super::config::{Capabilities, Process};
use super::names;
use super::validate::{ValidateError, bad_value};

/// Narrows a process. What can't be granted is left out and told in `warnings`, as config.md wants it
/// for capabilities ("MUST be logged as a warning"; "SHOULD NOT fail").
///
/// # Errors
/// When a limit has an unknown name, appears twice, or its soft value exceeds the hard one.
pub fn process(
    process: Process,
    session_keyring: Option<String>,
    warnings: &mut Vec<String>,
) -> Result<ProcessSpec, ValidateError> {
    let terminal = process.terminal.then_some(TerminalSpec {
        rows: process.console_size.height,
        columns: process.console_size.width,
    });
    Ok(ProcessSpec {
        args: process.args,
        env: process.env,
        cwd: process.cwd,
        user: UserSpec {
            uid: process.user.uid,
            gid: process.user.gid,
            umask: process.user.umask,
            additional_gids: process.user.additional_gids,
        },
        capabilities: process.capabilities.map(|sets| capabilities(&sets, warnings)),
        rlimits: rlimits(&process.rlimits)?,
        no_new_privileges: process.no_new_privileges,
        oom_score_adj: process.oom_score_adj,
        terminal,
        apparmor_profile: Some(process.apparmor_profile).filter(|profile| !profile.is_empty()),
        selinux_label: Some(process.selinux_label).filter(|label| !label.is_empty()),
        seccomp: None,
        session_keyring,
    })
}

fn capabilities(sets: &Capabilities, warnings: &mut Vec<String>) -> CapabilitySets {
    let mut mask = |set: &[String]| {
        let mut bits = 0;
        for name in set {
            match names::capability(name) {
                Some(number) => bits |= 1u64 << number,
                None => {
                    let warning = format!("unknown capability {name:?} is left out");
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                }
            }
        }
        bits
    };
    CapabilitySets {
        bounding: mask(&sets.bounding),
        effective: mask(&sets.effective),
        permitted: mask(&sets.permitted),
        inheritable: mask(&sets.inheritable),
        ambient: mask(&sets.ambient),
    }
}

fn rlimits(limits: &[super::config::Rlimit]) -> Result<Vec<RlimitSpec>, ValidateError> {
    let mut specs: Vec<RlimitSpec> = Vec::with_capacity(limits.len());
    for limit in limits {
        let resource = names::rlimit(&limit.kind)
            .ok_or_else(|| bad_value("process.rlimits[].type", &limit.kind, "no such resource limit"))?;
        // config.md: "If rlimits contains duplicated entries with same type, the runtime MUST generate
        // an error."
        if specs.iter().any(|spec| spec.resource == resource) {
            return Err(bad_value(
                "process.rlimits[].type",
                &limit.kind,
                "it appears twice",
            ));
        }
        if limit.soft > limit.hard {
            return Err(bad_value(
                "process.rlimits[].soft",
                limit.soft.to_string(),
                "it exceeds the hard limit",
            ));
        }
        specs.push(RlimitSpec {
            resource,
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn narrowed(value: serde_json::Value) -> (Result<ProcessSpec, ValidateError>, Vec<String>) {
        let mut warnings = Vec::new();
        let spec = process(serde_json::from_value(value).unwrap(), None, &mut warnings);
        (spec, warnings)
    }

    #[test]
    fn capability_names_become_bits_and_unknown_ones_a_warning() {
        let (spec, warnings) = narrowed(json!({"cwd": "/", "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_OF_THE_FUTURE"], "effective": ["CAP_OF_THE_FUTURE"]}}));
        let sets = spec.unwrap().capabilities.unwrap();
        assert_eq!((sets.bounding, sets.effective), (1 | 1 << 5, 0));
        assert_eq!(warnings, ["unknown capability \"CAP_OF_THE_FUTURE\" is left out"]);
    }

    #[test]
    fn absent_capabilities_stay_absent() {
        assert_eq!(narrowed(json!({"cwd": "/"})).0.unwrap().capabilities, None);
    }

    #[test]
    fn limits_are_numbered_and_never_twice() {
        let limit = json!({"type": "RLIMIT_NOFILE", "soft": 5, "hard": 10});
        let (spec, _) = narrowed(json!({"cwd": "/", "rlimits": [limit]}));
        assert_eq!(
            spec.unwrap().rlimits,
            [RlimitSpec {
                resource: 7,
                soft: 5,
                hard: 10
            }]
        );
        let (spec, _) = narrowed(json!({"cwd": "/", "rlimits": [limit, limit]}));
        assert!(spec.unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn limits_out_of_order_or_unknown_are_refused() {
        let (spec, _) =
            narrowed(json!({"cwd": "/", "rlimits": [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]}));
        assert!(spec.unwrap_err().to_string().contains("exceeds"));
        let (spec, _) =
            narrowed(json!({"cwd": "/", "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}));
        assert!(spec.unwrap_err().to_string().contains("RLIMIT_X"));
    }

    #[test]
    fn a_terminal_takes_its_size_along() {
        let (spec, _) =
            narrowed(json!({"cwd": "/", "terminal": true, "consoleSize": {"height": 24, "width": 80}}));
        assert_eq!(
            spec.unwrap().terminal,
            Some(TerminalSpec {
                rows: 24,
                columns: 80
            })
        );
    }
}
