//! `create`: from a bundle to a container whose workload waits for `start`.
//!
//! Each step that leaves something behind is recorded before it is taken; a creation that fails takes all
//! of it back.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use moat_workload::sys::Cloned;
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::Error;
use super::delete;
use super::hooks;
use super::observe;
use super::record::{self, ProcessId, Record};
use super::store::{self, Locked, Memory, Store};
use crate::bundle::load;
use crate::bundle::plan::{self, NamespaceKind, Plan, PlanOptions};
use crate::bundle::resources::Resources;
use crate::cell::cgroup::Cgroup;
use crate::cell::init::{self, Init};
use crate::cell::sync::{self, FromInit, SyncError, SyncSocket, ToInit};
use crate::cell::{namespaces, userns};
use crate::control;
use crate::isolation::choose::{self, Choice, Request};
use crate::isolation::host::VmPrerequisites;
use crate::isolation::{ANNOTATION, Isolation, Wish};
use crate::payload::Payload;
use crate::payload::process::ProcessPayload;
use crate::payload::vm::VmPayload;
use crate::report::{log, time};

/// What `create` and `run` are given.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The new container's id.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// Another file than the bundle's config.json.
    pub config: Option<PathBuf>,
    /// Where to write init's pid.
    pub pid_file: Option<PathBuf>,
    /// Socket that is given the terminal.
    pub console_socket: Option<PathBuf>,
    /// `--isolation`.
    pub isolation: Wish,
    /// The name that moat was called by.
    pub program_name: String,
    /// `--no-pivot`, `--no-new-keyring`.
    pub plan: PlanOptions,
    /// Descriptors after the standard ones that the workload keeps.
    pub preserve_fds: u32,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
}

/// What becomes of the container's terminal.
#[derive(Debug)]
pub enum Terminal {
    /// Its master is sent over the console socket, which `create` needs if there is a terminal.
    Hand,
    /// Its master is wanted here, by this end of a pair whose other end it is sent to.
    Relay(OwnedFd),
}

/// A container that waits for `start`.
#[derive(Debug)]
pub struct Created {
    /// Locked until it is dropped.
    pub container: Locked,
    /// init, a child of this process.
    pub init: OwnedFd,
}

/// Reads, checks and narrows the bundle.
///
/// # Errors
/// When the bundle can't be carried out.
pub fn load_plan(options: &CreateOptions) -> Result<Plan, Error> {
    let config = load::load(&options.bundle, options.config.as_deref())?;
    let plan = plan::plan(&options.id, &options.bundle, config, options.plan)?;
    for warning in &plan.warnings {
        log::warn(warning);
    }
    Ok(plan)
}

/// Creates a container.
///
/// # Errors
/// When it can't be created; nothing of it is left then.
pub fn create(
    store: &Store,
    options: &CreateOptions,
    mut plan: Plan,
    terminal: Terminal,
) -> Result<Created, Error> {
    let (choice, prerequisites) = choose(options, &plan)?;
    let console = console(options, &plan, terminal)?;
    let cgroup = Cgroup::locate(&plan, options.systemd_cgroup)?;
    if choice.isolation == Isolation::Process {
        let own_namespace = plan.namespaces.is_new(NamespaceKind::Cgroup);
        provide_cgroup_mounts(&mut plan, &cgroup, own_namespace);
    }
    let payload = payload(prerequisites, &plan, console, options)?;
    let limits = payload.limits(&plan.resources);
    let container = store.create(&options.id)?;
    let mut memory = Memory {
        record: None,
        init: None,
        created: false,
        started: false,
    };
    let created = match lay_out(&container, &plan, &choice, &cgroup, &mut memory) {
        Err(error) => Err(error),
        Ok(stage) => match namespaces::clone_init(&plan, stage.directory.as_ref()) {
            Err(error) => Err(error.into()),
            Ok(Cloned::Child) => {
                // In this process the lock would live on, and the command line's end of the line too.
                drop((container, stage.line, stage.directory));
                let version = cgroup.version;
                let init = Init {
                    plan: &plan,
                    payload,
                    sync: stage.inits_line,
                    control: stage.listener,
                    cgroup: version,
                };
                init::run(init)
            }
            Ok(Cloned::Parent { pid, pidfd }) => {
                drop((stage.inits_line, stage.listener, payload));
                let child = Child {
                    pid,
                    pidfd: Some(pidfd),
                };
                complete(
                    &container,
                    options,
                    &plan,
                    &cgroup,
                    &limits,
                    &stage.line,
                    child,
                    &mut memory,
                )
            }
        },
    };
    match created {
        Ok(init) => Ok(Created { container, init }),
        Err(error) => {
            if let Err(cleanup) = delete::tear_down(container, memory) {
                log::warn(&format!("cleaning up: {}", crate::report::error::chain(&cleanup)));
            }
            Err(error)
        }
    }
}

/// The choice, and what a microVM needs of the host, opened, when it is the choice.
fn choose(options: &CreateOptions, plan: &Plan) -> Result<(Choice, Option<VmPrerequisites>), Error> {
    let annotation = plan.annotations.get(ANNOTATION).map(String::as_str);
    let request = Request::new(options.isolation, annotation, &options.program_name)?;
    let mut prerequisites = None;
    let choice = choose::choose(&request, || match VmPrerequisites::open() {
        Ok(opened) => {
            prerequisites = Some(opened);
            None
        }
        Err(obstacle) => Some(obstacle),
    })?;
    Ok((choice, prerequisites))
}

fn provide_cgroup_mounts(plan: &mut Plan, cgroup: &Cgroup, own_namespace: bool) {
    use moat_protocol::workload_spec::MountSource;
    for mount in &mut plan.workload.mounts {
        if let MountSource::Cgroup(source) = &mut mount.source {
            *source = cgroup.mount_source(own_namespace);
        }
    }
}

/// Where the terminal's master goes. The socket is connected now: the cell does not see it.
fn console(options: &CreateOptions, plan: &Plan, terminal: Terminal) -> Result<Option<OwnedFd>, Error> {
    let has_terminal = plan.workload.process.terminal.is_some();
    match (has_terminal, &options.console_socket, terminal) {
        (true, Some(path), Terminal::Hand | Terminal::Relay(_)) => connect(path).map(Some),
        (true, None, Terminal::Relay(end)) => Ok(Some(end)),
        (true, None, Terminal::Hand) => Err(Error::ConsoleSocketNeeded),
        (false, Some(_), _) => Err(Error::ConsoleSocketUnused),
        (false, None, _) => Ok(None),
    }
}

fn connect(path: &Path) -> Result<OwnedFd, Error> {
    let stream = UnixStream::connect(path);
    stream.map(OwnedFd::from).map_err(|source| Error::ConsoleSocket {
        path: path.to_owned(),
        source,
    })
}

fn payload(
    prerequisites: Option<VmPrerequisites>,
    plan: &Plan,
    console: Option<OwnedFd>,
    options: &CreateOptions,
) -> Result<Box<dyn Payload>, Error> {
    match prerequisites {
        None => {
            let payload = ProcessPayload::new(plan, console, options.preserve_fds);
            Ok(Box::new(
                payload.map_err(|error| Error::Payload(Box::new(error)))?,
            ))
        }
        Some(prerequisites) => {
            let payload = VmPayload::new(prerequisites, plan, console, options.preserve_fds);
            Ok(Box::new(
                payload.map_err(|error| Error::Payload(Box::new(error)))?,
            ))
        }
    }
}

/// What is made before init.
struct Stage {
    line: SyncSocket,
    inits_line: SyncSocket,
    listener: UnixListener,
    directory: Option<OwnedFd>,
}

/// Record, cgroup and sockets, in this order: what is made is recorded before.
fn lay_out(
    container: &Locked,
    plan: &Plan,
    choice: &Choice,
    cgroup: &Cgroup,
    memory: &mut Memory,
) -> Result<Stage, Error> {
    let record = record(plan, choice, cgroup);
    container.write_record(&record)?;
    let directory = match cgroup.create() {
        Ok(directory) => directory,
        Err(error) => {
            // What was in the way is somebody else's, and must not be taken for the container's.
            cgroup.remove_unused(Duration::ZERO);
            return Err(error.into());
        }
    };
    memory.record = Some(Record {
        cgroup: cgroup.clone(),
        ..record
    });
    let listener = control::listen(&**container)?;
    let (line, inits_line) = sync::pair()?;
    Ok(Stage {
        line,
        inits_line,
        listener,
        directory,
    })
}

/// The command line's part beside init's.
#[expect(
    clippy::too_many_arguments,
    reason = "the two halves of one function, around the clone"
)]
fn complete(
    container: &Locked,
    options: &CreateOptions,
    plan: &Plan,
    cgroup: &Cgroup,
    limits: &Resources,
    line: &SyncSocket,
    child: Child,
    memory: &mut Memory,
) -> Result<OwnedFd, Error> {
    let pid = child.pid.as_raw_nonzero().get();
    let start = observe::start_time(pid).map_err(Error::Init)?;
    let init = ProcessId {
        pid,
        start: start.ok_or(Error::InitDied)?,
    };
    container.write_process(init)?;
    memory.init = Some(init);
    let proceeded = proceed(line, child.pid, plan, cgroup, limits);
    // What init says of its own failure explains more than that the line is dead.
    proceeded
        .and_then(|()| finish(line, plan, init))
        .map_err(|error| explain(line, error))?;
    if let Some(path) = &options.pid_file {
        store::write_whole(path, pid.to_string().as_bytes(), 0o644)?;
    }
    container.mark_created()?;
    Ok(child.into_pidfd())
}

/// What init waits for.
fn proceed(
    line: &SyncSocket,
    pid: Pid,
    plan: &Plan,
    cgroup: &Cgroup,
    limits: &Resources,
) -> Result<(), Error> {
    if let Some(maps) = &plan.id_maps {
        userns::write_maps(pid, maps)?;
    }
    // Limits first, so that nothing of the container is ever in its cgroup without them.
    cgroup.limit(limits)?;
    cgroup.join(pid)?;
    line.send(&ToInit::Proceed)?;
    Ok(())
}

/// Waits until init is prepared, and runs the hooks that it waits for.
fn finish(line: &SyncSocket, plan: &Plan, init: ProcessId) -> Result<(), Error> {
    loop {
        match line.receive()? {
            FromInit::RootBuilt => {
                hooks::create_runtime(plan, init.pid)?;
                line.send(&ToInit::HooksDone)?;
            }
            FromInit::Prepared => return Ok(()),
            FromInit::Failed(message) => return Err(Error::Container(message)),
        }
    }
}

fn explain(line: &SyncSocket, error: Error) -> Error {
    match error {
        Error::Sync(SyncError::Ended | SyncError::Send(_)) => match line.receive() {
            Ok(FromInit::Failed(message)) => Error::Container(message),
            Ok(FromInit::RootBuilt | FromInit::Prepared) | Err(_) => Error::InitDied,
        },
        other => other,
    }
}

fn record(plan: &Plan, choice: &Choice, cgroup: &Cgroup) -> Record {
    Record {
        version: record::VERSION,
        oci_version: plan.oci_version.clone(),
        id: plan.id.clone(),
        bundle: plan.bundle.clone(),
        rootfs: plan.rootfs.clone(),
        isolation: choice.isolation,
        reason: choice.source.to_string(),
        created: time::rfc3339(SystemTime::now()),
        cgroup: cgroup.clone(),
        own_pid_namespace: plan.namespaces.is_new(NamespaceKind::Pid),
        poststart: plan.hooks.poststart.clone(),
        poststop: plan.hooks.poststop.clone(),
        annotations: plan.annotations.clone(),
    }
}

/// init while it is created: ended and waited for when its creation fails.
struct Child {
    pid: Pid,
    pidfd: Option<OwnedFd>,
}

impl Child {
    fn into_pidfd(mut self) -> OwnedFd {
        self.pidfd.take().expect("taken here only, and self is consumed")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        use std::os::fd::AsFd;
        if let Some(pidfd) = &self.pidfd {
            let _gone_or_killed = crate::signal::send(pidfd, crate::signal::KILL);
            let _waited = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}
