//! Errors for people and engines: the chain of causes once, a hint where there is one, the exit status.

use std::error::Error as StdError;
use std::io;

use super::log;
use crate::bundle::load::LoadError;
use crate::bundle::plan::PlanError;
use crate::cell::cgroup::CgroupError;
use crate::cell::userns::UsernsError;
use crate::isolation::host::VmObstacle;
use crate::lifecycle::Error;
use crate::lifecycle::status::{Refusal, Status};
use crate::lifecycle::store::StoreError;

/// Exit status of a failed command, as runc's.
pub const FAILURE: u8 = 1;

/// The chain of an error's causes, outermost first, joined by `": "`. A cause that only repeats its
/// effect is said once.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = String::new();
    let mut last = String::new();
    let mut message = system_error(&error.to_string());
    let mut next = error.source();
    loop {
        let plain = message
            .rsplit_once(" (")
            .map_or(message.as_str(), |(plain, _)| plain);
        if message == last {
            // A wrapper that adds nothing.
        } else if text.ends_with(plain) && !text.is_empty() {
            text.push_str(&message[plain.len()..]);
        } else {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
        last = message;
        let Some(error) = next else { return text };
        message = system_error(&error.to_string());
        next = error.source();
    }
}

/// `no such file or directory (ENOENT)` for `No such file or directory (os error 2)`, as the standard
/// library and rustix write it.
fn system_error(message: &str) -> String {
    let number = message
        .strip_suffix(')')
        .and_then(|message| message.rsplit_once(" (os error "))
        .and_then(|(text, number)| Some((text, number.parse::<i32>().ok()?)));
    let Some((text, number)) = number else {
        return message.to_owned();
    };
    let mut letters = text.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_lowercase().to_string())
        .unwrap_or_default();
    format!(
        "{first}{} ({:?})",
        letters.as_str(),
        nix::errno::Errno::from_raw(number)
    )
}

/// Tells a failure everywhere it is to be told.
pub fn report(error: &(dyn StdError + 'static)) {
    let message = chain(error);
    super::complain(&format!("error: {message}"));
    if let Some(hint) = hint(error) {
        super::complain(&format!("hint:  {hint}"));
    }
    log::error(&message);
}

/// What to do about it, where that is known: the first answer in the chain.
fn hint(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let found = error
            .downcast_ref::<Error>()
            .and_then(of_lifecycle)
            .or_else(|| error.downcast_ref::<VmObstacle>().map(VmObstacle::remedy));
        if found.is_some() {
            return found;
        }
        next = error.source();
    }
    None
}

fn of_lifecycle(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Store(StoreError::Exists { .. }) => {
            "take another id, or `moat delete` the container that has it"
        }
        Error::Store(StoreError::NotFound { .. }) => {
            "`moat list` shows the containers there are; --root must be the same"
        }
        Error::Store(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            "call moat as root, or choose a directory of your own with --root"
        }
        Error::Refused(Refusal::NotStopped {
            status: Status::Running | Status::Paused,
        }) => "`moat kill` it first, or use `moat delete --force`",
        Error::Load(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            "--bundle must be a directory with a config.json; `moat spec` writes one"
        }
        Error::Plan(PlanError::Root { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            "root.path of config.json is taken from the bundle's directory"
        }
        Error::Cgroup(CgroupError::Systemd) => {
            "leave --systemd-cgroup out and give linux.cgroupsPath as a path"
        }
        Error::Cgroup(CgroupError::InUse { .. }) => "choose another linux.cgroupsPath",
        Error::Userns(UsernsError::Run { .. }) => "install the package uidmap",
        Error::ConsoleSocketNeeded => "give --console-socket, or set process.terminal to false",
        Error::ConsoleSocketUnused => "leave --console-socket out, or set process.terminal to true",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn not_found() -> io::Error {
        io::Error::from_raw_os_error(2)
    }

    #[test]
    fn a_chain_is_told_once_from_the_outside_in() {
        let error = Error::Load(LoadError::Read {
            path: PathBuf::from("/b/config.json"),
            source: not_found(),
        });
        assert_eq!(
            chain(&error),
            "cannot read /b/config.json: no such file or directory (ENOENT)"
        );
    }

    #[test]
    fn a_cause_that_its_effect_has_told_already_adds_its_code_alone() {
        let source = not_found();
        let error = LoadError::Read {
            path: PathBuf::from("/x: no such file or directory"),
            source,
        };
        assert_eq!(
            chain(&error),
            "cannot read /x: no such file or directory (ENOENT)"
        );
    }

    #[test]
    fn every_hint_is_given_for_its_error() {
        let id = || "c1".to_owned();
        let path = || PathBuf::from("/x");
        let denied = io::Error::from_raw_os_error(13);
        let cases: [(Error, &str); 11] = [
            (Error::Store(StoreError::Exists { id: id() }), "another id"),
            (Error::Store(StoreError::NotFound { id: id() }), "moat list"),
            (
                Error::Store(StoreError::File {
                    action: "make",
                    path: path(),
                    source: denied,
                }),
                "--root",
            ),
            (
                Error::Refused(Refusal::NotStopped {
                    status: Status::Running,
                }),
                "--force",
            ),
            (
                Error::Load(LoadError::Read {
                    path: path(),
                    source: not_found(),
                }),
                "moat spec",
            ),
            (
                Error::Plan(PlanError::Root {
                    path: path(),
                    source: not_found(),
                }),
                "root.path",
            ),
            (Error::Cgroup(CgroupError::Systemd), "--systemd-cgroup"),
            (Error::Cgroup(CgroupError::InUse { path: path() }), "cgroupsPath"),
            (
                Error::Userns(UsernsError::Run {
                    program: "newuidmap",
                    source: not_found(),
                }),
                "uidmap",
            ),
            (Error::ConsoleSocketNeeded, "--console-socket"),
            (Error::ConsoleSocketUnused, "process.terminal"),
        ];
        for (error, part) in cases {
            let hint = hint(&error).unwrap_or_default();
            assert!(hint.contains(part), "{error}: {hint:?}");
        }
    }

    #[test]
    fn a_missing_kvm_brings_its_own_remedy() {
        let refusal = crate::isolation::choose::Refusal {
            source_of_wish: crate::isolation::choose::Source::Flag,
            obstacle: VmObstacle::NoKvmDevice,
        };
        assert!(
            hint(&Error::Isolation(refusal))
                .unwrap()
                .contains("--isolation process")
        );
    }
}
