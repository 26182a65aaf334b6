//! The last steps of becoming the workload: from a process inside its container to its program (OCI
//! config.md "Process", runtime.md "Lifecycle" step 9).
//!
//! [`prepare`] does all that may fail, so that `create` can report it; between it and [`Launch::exec`]
//! the caller waits for `start`. The caller has called `setsid` and given the process its descriptors 0,
//! 1 and 2 (or [`crate::terminal::open_terminal`] has).

use std::{
    convert::Infallible,
    ffi::{CString, NulError},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use moat_protocol::workload_spec::{ProcessSpec, SeccompSpec};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::Uid,
};

use crate::{
    credentials::{self, CredentialError, Rest},
    limits::{self, LimitError},
    path::Root,
    procfs::Procfs,
    program::{self, ProgramError},
    seccomp::{self, SeccompError},
    sys, users,
};

/// Mode mask of a process whose configuration names none (runc's).
const DEFAULT_UMASK: u32 = 0o022;

/// Why a process could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument or variable holds a NUL byte.
    #[error("{what} holds a NUL byte")]
    Nul {
        /// Which.
        what: &'static str,
        /// Cause.
        #[source]
        source: NulError,
    },
    /// Keyring.
    #[error("cannot join session keyring {name:?}")]
    Keyring {
        /// Its name.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Label of a security module.
    #[error("cannot set the {module} label {label:?} for exec")]
    Label {
        /// `AppArmor` or `SELinux`.
        module: &'static str,
        /// Profile or label.
        label: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Owner of the standard streams.
    #[error("cannot give descriptor {descriptor} to user {uid}")]
    StreamOwner {
        /// 0, 1 or 2.
        descriptor: i32,
        /// New owner.
        uid: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Working directory.
    #[error("cannot {action} the working directory {cwd:?}")]
    WorkingDirectory {
        /// `make`, `enter` or `check`.
        action: &'static str,
        /// The directory.
        cwd: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// `PR_SET_NO_NEW_PRIVS`.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// Ids and capabilities.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The program is not there or can't be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Descriptors.
    #[error("cannot mark descriptors close-on-exec")]
    Descriptors(#[source] io::Error),
}

/// Why a prepared process did not become its program.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Signal handling.
    #[error("cannot reset signal handling")]
    Signals(#[source] io::Error),
    /// Seccomp filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// Capabilities kept for the filter.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// `execve`.
    #[error("exec {program:?}")]
    Exec {
        /// Path of the program.
        program: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// `execve` of a program that is there, for want of its interpreter.
    #[error("exec {program:?}: its interpreter or dynamic loader is missing")]
    Interpreter {
        /// Path of the program.
        program: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A process that is complete but for its seccomp filter and its program.
#[derive(Debug)]
pub struct Launch {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    seccomp: Option<SeccompSpec>,
    rest: Rest,
}

/// Gives the calling process everything that `spec` says but the terminal, the filter and the program.
/// Descriptors 3 to 2 + `preserve_fds` stay open across `execve`, others from 3 on are marked
/// close-on-exec.
///
/// # Errors
/// At the first step that fails; the process must end then, since it may hold half of its privileges.
pub fn prepare(spec: &ProcessSpec, preserve_fds: u32) -> Result<Launch, Error> {
    let arguments = c_strings("an argument", &spec.args)?;
    let environment = c_strings("an environment variable", &environment(spec))?;
    set_labels(spec)?;
    if let Some(value) = spec.oom_score_adj {
        limits::set_oom_score(value)?;
    }
    let cwd = enter_working_directory(&spec.cwd)?;
    give_streams_to(spec.user.uid)?;
    limits::set_rlimits(&spec.rlimits)?;
    if spec.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|errno| Error::NoNewPrivileges(errno.into()))?;
    }
    let keep_sys_admin = spec.seccomp.is_some() && !spec.no_new_privileges;
    let rest = credentials::become_user(&spec.user, spec.capabilities.as_ref(), keep_sys_admin)?;
    finish_working_directory(&spec.cwd, cwd)?;
    let program = program::find(&spec.args, &spec.env)?;
    rustix::process::umask(Mode::from_raw_mode(
        spec.user.umask.unwrap_or(DEFAULT_UMASK) & 0o777,
    ));
    sys::close_on_exec_from(3u32.saturating_add(preserve_fds)).map_err(Error::Descriptors)?;
    Ok(Launch {
        program,
        arguments,
        environment,
        seccomp: spec.seccomp.clone(),
        rest,
    })
}

impl Launch {
    /// Becomes the program; returns only when that failed.
    pub fn exec(self) -> ExecError {
        match self.try_exec() {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    fn try_exec(self) -> Result<Infallible, ExecError> {
        sys::default_signals().map_err(ExecError::Signals)?;
        if let Some(filter) = &self.seccomp {
            seccomp::install(filter)?;
        }
        self.rest.drop_kept()?;
        let Err(errno) = nix::unistd::execve(&self.program, &self.arguments, &self.environment);
        let program = self.program.to_string_lossy().into_owned();
        let source = errno.into();
        Err(match errno {
            // the program was found a moment ago
            nix::errno::Errno::ENOENT => ExecError::Interpreter { program, source },
            _ => ExecError::Exec { program, source },
        })
    }
}

fn c_strings(what: &'static str, strings: &[String]) -> Result<Vec<CString>, Error> {
    let converted = strings
        .iter()
        .map(|string| CString::new(string.as_bytes()))
        .collect();
    let converted: Result<Vec<CString>, NulError> = converted;
    converted.map_err(|source| Error::Nul { what, source })
}

/// The environment, with `HOME` as the container's own `/etc/passwd` has it when it is not given.
fn environment(spec: &ProcessSpec) -> Vec<String> {
    let mut environment = spec.env.clone();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", users::home_of(spec.user.uid)));
    }
    environment
}

fn set_labels(spec: &ProcessSpec) -> Result<(), Error> {
    if let Some(name) = &spec.session_keyring {
        let c_name = CString::new(name.as_bytes()).map_err(|source| Error::Nul {
            what: "the keyring's name",
            source,
        })?;
        match sys::join_session_keyring(&c_name) {
            Ok(()) => {}
            // a kernel without keys has none to leak
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
            Err(source) => {
                return Err(Error::Keyring {
                    name: name.clone(),
                    source,
                });
            }
        }
    }
    let labels = [
        ("AppArmor", &spec.apparmor_profile),
        ("SELinux", &spec.selinux_label),
    ];
    for (module, label) in labels {
        let Some(label) = label else { continue };
        set_label(module, label).map_err(|source| Error::Label {
            module,
            label: label.clone(),
            source,
        })?;
    }
    Ok(())
}

fn set_label(module: &str, label: &str) -> io::Result<()> {
    let procfs = Procfs::own()?;
    if module == "SELinux" {
        return procfs.write_own("attr/exec", label);
    }
    let text = format!("exec {label}");
    match procfs.write_own("attr/apparmor/exec", &text) {
        // before Linux 5.8 there is one file for all modules
        Err(error) if error.kind() == io::ErrorKind::NotFound => procfs.write_own("attr/exec", &text),
        result => result,
    }
}

/// Whether the working directory was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entered {
    Yes,
    /// Only the container's user may.
    NotYet,
}

fn enter_working_directory(cwd: &str) -> Result<Entered, Error> {
    let failed = |action, source: io::Error| Error::WorkingDirectory {
        action,
        cwd: cwd.to_owned(),
        source,
    };
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(Entered::Yes),
        Err(Errno::NOENT) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty());
            let root = Root::new(root.map_err(|errno| failed("make", errno.into()))?);
            let made = root
                .make_directories(cwd)
                .map_err(|error| failed("make", error))?;
            rustix::process::fchdir(&made).map_err(|errno| failed("enter", errno.into()))?;
            Ok(Entered::Yes)
        }
        // a directory that root of a user namespace or over the network may not enter, but the user may
        Err(Errno::ACCESS | Errno::PERM) => Ok(Entered::NotYet),
        Err(errno) => Err(failed("enter", errno.into())),
    }
}

/// The second try, as the user; and proof that the directory lies in the container: a path through a
/// leaked descriptor of the host, such as `/proc/self/fd/7`, must not be entered (CVE-2024-21626).
fn finish_working_directory(cwd: &str, entered: Entered) -> Result<(), Error> {
    let failed = |action, source: io::Error| Error::WorkingDirectory {
        action,
        cwd: cwd.to_owned(),
        source,
    };
    if entered == Entered::NotYet {
        rustix::process::chdir(cwd).map_err(|errno| failed("enter", errno.into()))?;
    }
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(failed(
            "check",
            io::Error::other("it is outside of the container's root"),
        )),
        Err(errno) => Err(failed("check", errno.into())),
    }
}

/// Programs open `/dev/stdout` anew, which needs permission on the pipe behind it; so the streams
/// become the user's, except for devices shared with others such as `/dev/null`.
fn give_streams_to(uid: u32) -> Result<(), Error> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams: [(i32, BorrowedFd<'_>); 3] = [(0, stdin.as_fd()), (1, stdout.as_fd()), (2, stderr.as_fd())];
    for (descriptor, stream) in streams {
        let failed = |errno: Errno| Error::StreamOwner {
            descriptor,
            uid,
            source: errno.into(),
        };
        let stat = match rustix::fs::fstat(stream) {
            Ok(stat) => stat,
            // closed by the engine
            Err(Errno::BADF) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        if stat.st_uid == uid || stat.st_rdev == rustix::fs::makedev(1, 3) {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
            // not ours to give: an id that is not mapped here, a read-only file system, another's file
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}
