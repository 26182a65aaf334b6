//! Hooks (config.md "POSIX-platform Hooks"): programs that are run at six points of a container's life
//! with its state on standard input. A hook that fails or takes too long fails what it belongs to,
//! except after the container's end, where it is warned of.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};

use super::state::HookState;
use super::status::Status;
use crate::bundle::config::{Hook, Hooks};
use crate::bundle::plan::Plan;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("cannot run the {point} hook {path}")]
    Run {
        /// When it was to run.
        point: &'static str,
        /// The program.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended badly.
    #[error("the {point} hook {path} failed: {status}{said}")]
    Failed {
        /// When it ran.
        point: &'static str,
        /// The program.
        path: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote, with a colon before it, or nothing.
        said: String,
    },
    /// It took too long and was killed.
    #[error("the {point} hook {path} did not end within {seconds} s{said}")]
    TimedOut {
        /// When it ran.
        point: &'static str,
        /// The program.
        path: String,
        /// Its limit.
        seconds: i64,
        /// The end of what it wrote, with a colon before it, or nothing.
        said: String,
    },
}

/// Whether some hook is to run between the mounts and `pivot_root`.
pub fn wait_for_root(hooks: &Hooks) -> bool {
    !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty() && hooks.create_container.is_empty())
}

/// prestart and createRuntime: on the host, before `pivot_root`.
///
/// # Errors
/// The first hook that fails.
pub fn create_runtime(plan: &Plan, init: i32) -> Result<(), HookError> {
    let state = HookState::of_plan(plan, Status::Creating, init);
    run_all("prestart", &plan.hooks.prestart, &state)?;
    run_all("createRuntime", &plan.hooks.create_runtime, &state)
}

/// createContainer: in the container's namespaces, before `pivot_root`.
///
/// # Errors
/// The first hook that fails.
pub fn create_container(plan: &Plan) -> Result<(), HookError> {
    let state = HookState::of_plan(plan, Status::Creating, own_pid());
    run_all("createContainer", &plan.hooks.create_container, &state)
}

/// startContainer: in the container, before its program.
///
/// # Errors
/// The first hook that fails.
pub fn start_container(plan: &Plan) -> Result<(), HookError> {
    let state = HookState::of_plan(plan, Status::Created, own_pid());
    run_all("startContainer", &plan.hooks.start_container, &state)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Runs hooks in their order.
///
/// # Errors
/// The first that fails; those after it do not run.
pub fn run_all(point: &'static str, hooks: &[Hook], state: &HookState<'_>) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).unwrap_or_default();
    hooks.iter().try_for_each(|hook| run(point, hook, &state))
}

fn run(point: &'static str, hook: &Hook, state: &[u8]) -> Result<(), HookError> {
    let failed = |source: io::Error| HookError::Run {
        point,
        path: hook.path.clone(),
        source,
    };
    // Kept in memory: a pipe would have to be read while waiting, and would stay open as long as
    // anything that the hook leaves running.
    let output = rustix::fs::memfd_create("hook output", MemfdFlags::CLOEXEC);
    let mut output = File::from(output.map_err(|error| failed(error.into()))?);
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    command.stdin(Stdio::piped());
    command
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its state is none the worse for it.
        let _unread = stdin.write_all(state);
    }
    match wait(&mut child, hook.timeout).map_err(failed)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HookError::Failed {
            point,
            path: hook.path.clone(),
            status: describe(status),
            said: end_of(&mut output),
        }),
        None => Err(HookError::TimedOut {
            point,
            path: hook.path.clone(),
            seconds: hook.timeout.unwrap_or_default(),
            said: end_of(&mut output),
        }),
    }
}

/// How it ended, `None` when its time was over.
fn wait(child: &mut Child, timeout: Option<i64>) -> io::Result<Option<ExitStatus>> {
    let Some(seconds) = timeout else {
        return child.wait().map(Some);
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    if rustix::event::poll(&mut polled, Some(&limit))? == 0 {
        child.kill()?;
        child.wait()?;
        return Ok(None);
    }
    child.wait().map(Some)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// The last words of a hook, for its error.
fn end_of(output: &mut File) -> String {
    const MOST: u64 = 1024;
    let mut bytes = Vec::new();
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let from = io::SeekFrom::Start(length.saturating_sub(MOST));
    let _rest_is_lost = output
        .seek(from)
        .and_then(|_| output.take(MOST).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn sh(script: &str, timeout: Option<i64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["hook".into(), "-c".into(), script.into()],
            env: vec!["PATH=/usr/bin:/bin".into(), "GREETING=hello".into()],
            timeout,
        }
    }

    fn run_hooks(hooks: &[Hook]) -> Result<(), HookError> {
        let annotations = BTreeMap::new();
        let state = HookState {
            oci_version: "1.2.0",
            id: "c1",
            status: Status::Creating,
            pid: 42,
            bundle: Path::new("/b"),
            annotations: &annotations,
        };
        run_all("prestart", hooks, &state)
    }

    #[test]
    fn a_hook_gets_its_state_environment_and_name() {
        let check = r#"read state; case "$state" in *'"id":"c1","status":"creating","pid":42'*) ;; *) exit 3;; esac
            [ "$GREETING" = hello ] || exit 4; [ "$0" = sh ] || [ "$0" = hook ] || exit 5"#;
        run_hooks(&[sh(check, None)]).unwrap();
    }

    #[test]
    fn a_failing_hook_says_how_and_what_and_stops_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let hooks = [
            sh("echo no disk >&2; exit 7", None),
            sh(&format!("touch {}", mark.display()), None),
        ];
        let error = run_hooks(&hooks).unwrap_err().to_string();
        assert_eq!(error, "the prestart hook /bin/sh failed: exit status 7: no disk");
        assert!(!mark.exists());
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let error = run_hooks(&[sh("exec sleep 60", Some(1))]).unwrap_err();
        assert!(matches!(error, HookError::TimedOut { seconds: 1, .. }), "{error}");
    }

    #[test]
    fn a_hook_that_does_not_exist_is_named() {
        let hook = Hook {
            path: "/no/such/hook".into(),
            args: vec![],
            env: vec![],
            timeout: None,
        };
        assert_eq!(
            run_hooks(&[hook]).unwrap_err().to_string(),
            "cannot run the prestart hook /no/such/hook"
        );
    }

    #[test]
    fn a_hook_may_leave_its_state_unread_and_something_running() {
        run_hooks(&[sh("exec 0<&-; sleep 5 & exit 0", Some(3))]).unwrap();
    }
}
