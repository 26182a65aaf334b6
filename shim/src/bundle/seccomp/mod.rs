//! The seccomp section of config.json as a program for the kernel (config-linux.md "Seccomp";
//! seccomp(2)): x86-64, with the i386 and x32 calls that an x86-64 kernel also takes.
//!
//! Rules mean what they mean to libseccomp, which runc and crun use: a rule without conditions for a call
//! outweighs those with conditions; of the others the first whose conditions all hold decides, else the
//! default action. An architecture that is not listed is killed. A call with a number above all that the
//! profile knows of fails with ENOSYS where it would be refused, as in runc: it is newer than the profile,
//! and programs fall back to an older one on ENOSYS only.

mod program;
mod syscalls;

use std::collections::BTreeMap;

use moat_protocol::workload_spec::SeccompSpec;
use nix::libc;

use self::program::{Block, Condition, Decision, Operator, Rule};
use super::config::{Seccomp, SyscallArgument, SyscallRule};
use super::validate::{ValidateError, bad_value};

/// `SECCOMP_RET_*` (linux/seccomp.h).
mod action {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
}

/// Actions by name, with the number that a missing `errnoRet` stands for where there may be one.
const ACTIONS: [(&str, u32, Option<u32>); 8] = [
    ("SCMP_ACT_KILL", action::KILL_THREAD, None),
    ("SCMP_ACT_KILL_PROCESS", action::KILL_PROCESS, None),
    ("SCMP_ACT_KILL_THREAD", action::KILL_THREAD, None),
    ("SCMP_ACT_TRAP", action::TRAP, None),
    ("SCMP_ACT_ERRNO", action::ERRNO, Some(EPERM)),
    ("SCMP_ACT_TRACE", action::TRACE, Some(EPERM)),
    ("SCMP_ACT_LOG", action::LOG, None),
    ("SCMP_ACT_ALLOW", action::ALLOW, None),
];

const EPERM: u32 = libc::EPERM.cast_unsigned();
const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();

const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_NE", Operator::NotEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
];

/// `SECCOMP_FILTER_FLAG_*`. TSYNC has no meaning for a process with one thread, and is left out.
const FLAGS: [(&str, u32); 3] = [
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
];

/// Architectures of this machine, in the order of the columns of `SYSCALLS`.
const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
const X86_64: usize = 0;
const I386: usize = 1;
const X32: usize = 2;

/// Set in the number of an x32 call.
const X32_BIT: u32 = 0x4000_0000;
/// The number of a call that a tracer has cancelled.
const CANCELLED: u32 = u32::MAX;

/// Names that `features` tells.
pub fn actions() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().map(|(name, ..)| *name)
}

/// Likewise.
pub fn operators() -> impl Iterator<Item = &'static str> {
    OPERATORS.iter().map(|(name, _)| *name)
}

/// Likewise.
pub fn architectures() -> [&'static str; 3] {
    ARCHITECTURES
}

/// Likewise.
pub fn flags() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|(name, _)| *name)
}

/// Compiles a profile.
///
/// # Errors
/// When a name is unknown, a field has no meaning, or a listener is asked for.
pub fn compile(seccomp: &Seccomp, warnings: &mut Vec<String>) -> Result<SeccompSpec, ValidateError> {
    if !seccomp.listener_path.is_empty() {
        return Err(unsupported("linux.seccomp.listenerPath"));
    }
    let profile = Profile::read(seccomp, warnings)?;
    let blocks = [
        Block {
            architecture: program::AUDIT_ARCH_X86_64,
            wide: true,
            decisions: profile.decisions_of_64_bit(),
        },
        Block {
            architecture: program::AUDIT_ARCH_I386,
            wide: false,
            decisions: if profile.listed[I386] {
                profile.decisions(I386)
            } else {
                BTreeMap::from([(0, Decision::Always(action::KILL_THREAD))])
            },
        },
    ];
    let program = program::assemble(&blocks, profile.default, action::KILL_THREAD);
    if program.len() / program::INSTRUCTION > program::MAX_INSTRUCTIONS {
        let count = seccomp.syscalls.len().to_string();
        return Err(bad_value(
            "linux.seccomp.syscalls",
            count,
            "it makes a filter that the kernel finds too long",
        ));
    }
    Ok(SeccompSpec {
        program,
        flags: filter_flags(&seccomp.flags)?,
    })
}

fn unsupported(field: &str) -> ValidateError {
    ValidateError::Unsupported {
        field: field.to_owned(),
        reason: ": notifications have no listener here",
    }
}

fn filter_flags(names: &[String]) -> Result<u32, ValidateError> {
    names.iter().try_fold(0, |flags, name| {
        match FLAGS.iter().find(|(known, _)| known == name) {
            Some((_, flag)) => Ok(flags | flag),
            None => Err(bad_value("linux.seccomp.flags", name, "no such flag")),
        }
    })
}

fn action_of(field: &str, name: &str, errno: Option<u32>) -> Result<u32, ValidateError> {
    /// `SECCOMP_RET_DATA`: what the kernel takes of the number.
    const LARGEST: u32 = 0xffff;
    if name == "SCMP_ACT_NOTIFY" {
        return Err(unsupported(&format!("{field} SCMP_ACT_NOTIFY")));
    }
    let known = ACTIONS.iter().find(|(known, ..)| *known == name);
    let (_, action, missing) = known.ok_or_else(|| bad_value(field, name, "no such action"))?;
    match (missing, errno) {
        (None, None) => Ok(*action),
        (None, Some(_)) => Err(bad_value(
            field,
            name,
            "an errnoRet is given, which this action has no use for",
        )),
        (Some(_), Some(errno)) if errno > LARGEST => Err(bad_value(
            "linux.seccomp errnoRet",
            errno.to_string(),
            "no such error number",
        )),
        (Some(missing), errno) => Ok(action | errno.unwrap_or(*missing)),
    }
}

fn condition(argument: &SyscallArgument) -> Result<Condition, ValidateError> {
    const FIELD: &str = "linux.seccomp.syscalls[].args[]";
    let index = u8::try_from(argument.index).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| {
        bad_value(
            format!("{FIELD}.index"),
            argument.index.to_string(),
            "0 to 5 is possible",
        )
    })?;
    let (_, operator) = OPERATORS
        .iter()
        .find(|(name, _)| *name == argument.op)
        .ok_or_else(|| bad_value(format!("{FIELD}.op"), &argument.op, "no such comparison"))?;
    Ok(Condition {
        index,
        operator: *operator,
        value: argument.value,
        second: argument.value_two,
    })
}

/// The conditions of a rule; several rules where one argument appears more than once, as runc takes it.
fn alternatives(rule: &SyscallRule) -> Result<Vec<Vec<Condition>>, ValidateError> {
    let conditions: Vec<Condition> = rule.args.iter().map(condition).collect::<Result<_, _>>()?;
    let repeated = (0..6).any(|index| {
        conditions
            .iter()
            .filter(|condition| condition.index == index)
            .count()
            > 1
    });
    if repeated {
        return Ok(conditions.into_iter().map(|condition| vec![condition]).collect());
    }
    Ok(vec![conditions])
}

/// A profile with numbers for names.
struct Profile {
    default: u32,
    listed: [bool; 3],
    /// Per architecture: what is decided of a call.
    calls: [BTreeMap<u32, Decision>; 3],
}

impl Profile {
    fn read(seccomp: &Seccomp, warnings: &mut Vec<String>) -> Result<Profile, ValidateError> {
        let default = action_of(
            "linux.seccomp.defaultAction",
            &seccomp.default_action,
            seccomp.default_errno_ret,
        )?;
        let mut listed = ARCHITECTURES.map(|name| seccomp.architectures.iter().any(|listed| listed == name));
        listed[X86_64] = true;
        let mut profile = Profile {
            default,
            listed,
            calls: Default::default(),
        };
        for rule in &seccomp.syscalls {
            let action = action_of("linux.seccomp.syscalls[].action", &rule.action, rule.errno_ret)?;
            let alternatives = alternatives(rule)?;
            for name in &rule.names {
                profile.add(name, action, &alternatives, warnings);
            }
        }
        Ok(profile)
    }

    fn add(&mut self, name: &str, action: u32, alternatives: &[Vec<Condition>], warnings: &mut Vec<String>) {
        let Ok(place) = syscalls::SYSCALLS.binary_search_by(|(known, _)| (*known).cmp(name)) else {
            // Profiles name calls of other architectures and of later kernels. Where the default refuses,
            // they stay refused.
            if matches!(self.default, action::ALLOW | action::LOG) {
                warnings.push(format!(
                    "seccomp: the system call {name:?} is unknown and stays allowed"
                ));
            }
            return;
        };
        let (_, numbers) = syscalls::SYSCALLS[place];
        for (calls, number) in self.calls.iter_mut().zip(numbers) {
            let Ok(number) = u32::try_from(number) else {
                continue;
            };
            let decision = calls.entry(number).or_insert_with(|| Decision::First(Vec::new()));
            for conditions in alternatives {
                decision.add(conditions, action);
            }
        }
    }

    fn refuses(&self) -> bool {
        let is_enosys = self.default == action::ERRNO | ENOSYS;
        !is_enosys
            && !matches!(self.default, action::ALLOW | action::LOG)
            && self.default & action::TRACE != action::TRACE
    }

    /// What is decided from each number on, up to the next one.
    fn decisions(&self, architecture: usize) -> BTreeMap<u32, Decision> {
        let calls = &self.calls[architecture];
        let mut decisions = BTreeMap::from([(0, Decision::Always(self.default))]);
        // First where each call ends, since the next number may have a rule itself.
        decisions.extend(
            calls
                .keys()
                .map(|number| (number + 1, Decision::Always(self.default))),
        );
        decisions.extend(calls.iter().map(|(number, decision)| (*number, decision.clone())));
        if let Some((last, _)) = calls.last_key_value()
            && self.refuses()
        {
            decisions.insert(last + 1, Decision::Always(action::ERRNO | ENOSYS));
            decisions.insert(CANCELLED, Decision::Always(self.default));
        }
        decisions
    }

    /// x86-64 and x32 share an architecture, and are told apart by a bit of the number.
    fn decisions_of_64_bit(&self) -> BTreeMap<u32, Decision> {
        let mut decisions = self.decisions(X86_64);
        if self.listed[X32] {
            for (number, decision) in self.decisions(X32) {
                decisions.insert(number | X32_BIT, decision);
            }
        } else {
            decisions.insert(X32_BIT, Decision::Always(action::KILL_THREAD));
        }
        decisions.insert(CANCELLED, Decision::Always(self.default));
        decisions
    }
}

impl Decision {
    fn add(&mut self, conditions: &[Condition], action: u32) {
        match self {
            Decision::Always(_) => {}
            Decision::First(_) if conditions.is_empty() => *self = Decision::Always(action),
            Decision::First(rules) => rules.push(Rule {
                conditions: conditions.to_vec(),
                action,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::program::simulate::{Call, run};
    use super::*;

    const READ: u32 = 0;
    const CLONE: u32 = 56;
    const PERSONALITY: u32 = 135;

    fn compiled(profile: Value) -> Result<SeccompSpec, ValidateError> {
        compile(&serde_json::from_value(profile).unwrap(), &mut Vec::new())
    }

    fn answer(profile: &Value, call: Call) -> u32 {
        run(&compiled(profile.clone()).unwrap().program, &call)
    }

    fn call(number: u32, arguments: &[u64]) -> Call {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Call {
            number,
            architecture: program::AUDIT_ARCH_X86_64,
            arguments: all,
        }
    }

    fn allow_list(rules: Value) -> Value {
        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
    }

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(syscalls::SYSCALLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("ioctl", libc::SYS_ioctl),
        ] {
            let (_, numbers) =
                syscalls::SYSCALLS[syscalls::SYSCALLS.binary_search_by(|s| s.0.cmp(name)).unwrap()];
            assert_eq!(i64::from(numbers[X86_64]), number, "{name}");
        }
    }

    #[test]
    fn listed_calls_are_allowed_others_refused_and_newer_ones_unknown() {
        let profile = allow_list(json!([{"names": ["read", "personality"], "action": "SCMP_ACT_ALLOW"}]));
        assert_eq!(answer(&profile, call(READ, &[])), action::ALLOW);
        assert_eq!(answer(&profile, call(PERSONALITY, &[])), action::ALLOW);
        assert_eq!(answer(&profile, call(CLONE, &[])), action::ERRNO | EPERM);
        assert_eq!(
            answer(&profile, call(PERSONALITY + 1, &[])),
            action::ERRNO | ENOSYS
        );
        assert_eq!(answer(&profile, call(CANCELLED, &[])), action::ERRNO | EPERM);
    }

    #[test]
    fn architectures_that_are_not_listed_are_killed() {
        let profile = allow_list(json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]));
        let i386 = Call {
            architecture: program::AUDIT_ARCH_I386,
            ..call(3, &[])
        };
        assert_eq!(answer(&profile, i386.clone()), action::KILL_THREAD);
        assert_eq!(answer(&profile, call(X32_BIT | READ, &[])), action::KILL_THREAD);
        let mut all = profile;
        all["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(answer(&all, i386), action::ALLOW, "read is call 3 on i386");
        assert_eq!(answer(&all, call(X32_BIT | READ, &[])), action::ALLOW);
        let arm = Call {
            architecture: 0xc000_00b7,
            ..call(READ, &[])
        };
        assert_eq!(answer(&all, arm), action::KILL_THREAD);
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives_and_on_several_are_all_needed() {
        let equal = |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
        let profile = allow_list(json!([
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 8), equal(0, 0xffff_ffff)]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [equal(0, 1), equal(1, 2)]}]));
        assert_eq!(answer(&profile, call(PERSONALITY, &[8])), action::ALLOW);
        assert_eq!(answer(&profile, call(PERSONALITY, &[0xffff_ffff])), action::ALLOW);
        assert_eq!(answer(&profile, call(PERSONALITY, &[9])), action::ERRNO | EPERM);
        assert_eq!(answer(&profile, call(CLONE, &[1, 2])), action::ALLOW);
        assert_eq!(answer(&profile, call(CLONE, &[1, 3])), action::ERRNO | EPERM);
    }

    #[test]
    fn a_rule_without_conditions_outweighs_those_with() {
        let equal = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
        let profile = allow_list(json!([
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": equal},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]));
        assert_eq!(answer(&profile, call(CLONE, &[1])), action::ERRNO | ENOSYS);
    }

    #[test]
    fn an_unknown_call_in_a_deny_list_is_warned_of() {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["call_of_the_future"], "action": "SCMP_ACT_ERRNO"}]});
        let mut warnings = Vec::new();
        compile(&serde_json::from_value(profile).unwrap(), &mut warnings).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        let refused = |profile: Value| compiled(profile).unwrap_err().to_string();
        assert!(refused(json!({"defaultAction": "SCMP_ACT_X"})).contains("defaultAction"));
        assert!(
            refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1})).contains("errnoRet")
        );
        assert!(refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]})).contains("flags"));
        assert!(refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"})).contains("SCMP_ACT_NOTIFY"));
        assert!(
            refused(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}))
                .contains("listenerPath")
        );
        let args = json!([{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]);
        let rule = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args}]);
        assert!(refused(allow_list(rule)).contains("index"));
    }

    #[test]
    fn neighbouring_calls_share_instructions() {
        let names: Vec<&str> = syscalls::SYSCALLS.iter().map(|(name, _)| *name).collect();
        let profile = allow_list(json!([{"names": names, "action": "SCMP_ACT_ALLOW"}]));
        let length = compiled(profile).unwrap().program.len() / program::INSTRUCTION;
        assert!(
            length < 40,
            "{length} instructions for {} calls",
            syscalls::SYSCALLS.len()
        );
    }
}
