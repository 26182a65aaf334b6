//! The payload of isolation `vm`: the VMM, which runs as the container's init inside the cell.
//!
//! What the cell will hide (`/dev/kvm`, the guest's files, the standard streams) is opened by the command
//! line. In the cell a builder thread makes the VM while the main thread makes the mount tree; the
//! builder is joined before the tree is entered, and device and vCPU threads start after that.

mod cell_root;
mod failure;
mod guest_channel;
mod guest_limits;
mod refuse;
mod report;
pub mod shape;
mod signals;
mod stdio;
mod supervisor;
mod translate;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use moat_protocol::message::GuestCgroup;
use moat_protocol::phase::BOOT_CLOCK_PORT;
use moat_protocol::ports::{FS_TAG, GUEST_CID};
use moat_protocol::workload_spec::WorkloadSpec;
use moat_vmm::boot::initramfs;
use moat_vmm::builder::{Machine, MachineError, Worker};
use moat_vmm::config::{ConfigError, VmConfig};
use moat_vmm::devices::virtio::fs::{CachePolicy, Fs, FsConfig};
use moat_vmm::devices::virtio::rng::Rng;
use moat_vmm::devices::virtio::vsock::{Vsock, VsockConfig};

use self::cell_root::{CellRoot, EnteredCell};
use self::failure::{Cause, VmFailure};
use self::report::Report;
use self::shape::Shape;
use self::signals::Signals;
use self::stdio::HostStreams;
use self::supervisor::{Assignment, Supervisor};
use self::translate::Export;
use super::{Payload, PayloadError};
use crate::bundle::plan::Plan;
use crate::bundle::resources::Resources;
use crate::cell::sync;
use crate::control::{self, ControlReply, ControlRequest};
use crate::isolation::host::{KVM_DEVICE, VmPrerequisites};

/// Exit status of a VMM whose guest died under its workload; `run` and engines show it as the
/// container's. (Docker uses 125 for failures of its own, too.)
const VM_DIED: i32 = 125;

/// Exit status when the workload could not be executed at `start`, as in isolation `process`.
const NOT_STARTED: i32 = 1;

/// How long a guest may take from its first instruction to the barrier, unless `MOAT_BOOT_TIMEOUT` says
/// otherwise. A boot takes a fraction of a second; a minute leaves room for emulated and crowded hosts.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Environment variable: the boot limit in seconds.
const BOOT_LIMIT_VARIABLE: &str = "MOAT_BOOT_TIMEOUT";

/// Environment variable: further parameters for the guest's kernel, such as `loglevel=7`.
const COMMAND_LINE_VARIABLE: &str = "MOAT_GUEST_CMDLINE";

/// How long a client of the control socket may take to say what it wants.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// Random bytes that a guest starts with: what the kernel's pool holds (256 bits), twice.
const ENTROPY: usize = 64;

/// Why no VM payload could be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The container asks for what a guest can't have.
    #[error("isolation vm cannot run this container")]
    Refused(#[from] refuse::VmRefusal),
    /// Likewise, of its mounts, devices and labels.
    #[error("isolation vm cannot run this container")]
    Untranslatable(#[from] translate::TranslateError),
    /// Its limits have no meaning in a guest.
    #[error("cannot carry the container's limits over to the guest")]
    Limits(#[from] crate::cell::cgroup::CgroupError),
    /// The VM's configuration is out of range.
    #[error("cannot configure the microVM")]
    Config(#[from] ConfigError),
    /// The VM could not be built.
    #[error("cannot build the microVM from {KVM_DEVICE} and the guest kernel {}", kernel.display())]
    Build {
        /// The kernel's file.
        kernel: PathBuf,
        /// Why.
        #[source]
        source: MachineError,
    },
    /// A device could not be attached, or a thread not be started.
    #[error("cannot start the microVM")]
    Machine(#[from] MachineError),
    /// An environment variable has no meaning.
    #[error("{variable}={value} is not a number of seconds from 1 to 3600")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    Step {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The steps were called out of order, or the builder thread panicked.
    #[error("the microVM's steps were called out of order")]
    OutOfOrder,
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> VmError {
    move |error| VmError::Step {
        action,
        source: error.into(),
    }
}

/// What the builder thread needs.
struct Parts {
    kvm: File,
    config: VmConfig,
}

/// A microVM on its way.
pub struct VmPayload {
    shape: Shape,
    exports: Vec<Export>,
    spec: Option<WorkloadSpec>,
    cgroup: GuestCgroup,
    streams: Option<HostStreams>,
    console: Option<OwnedFd>,
    boot_limit: Duration,
    kernel_path: PathBuf,
    report: Option<Report>,
    failures: File,
    null: File,
    parts: Option<Parts>,
    builder: Option<JoinHandle<Result<Machine, MachineError>>>,
    root: Option<CellRoot>,
    supervisor: Option<Supervisor>,
}

impl VmPayload {
    /// For a container whose terminal's master, if it has a terminal, goes to `console`.
    ///
    /// # Errors
    /// When the container asks for what a guest can't have.
    pub fn new(
        prerequisites: VmPrerequisites,
        plan: &Plan,
        console: Option<OwnedFd>,
        preserve_fds: u32,
    ) -> Result<VmPayload, VmError> {
        refuse::check(plan, preserve_fds)?;
        let VmPrerequisites {
            kvm,
            kernel,
            kernel_path,
            mut init,
        } = prerequisites;
        let (spec, exports) = translate::translate(&plan.workload)?;
        let shape = Shape::for_limits(&guest_limits::shaping(&plan.resources));
        let mut program = Vec::new();
        init.read_to_end(&mut program).map_err(step("read guest-init"))?;
        let ram = u32::try_from(shape.ram_mib).unwrap_or(u32::MAX);
        let report = Report::from_environment().map_err(step("open the file named by MOAT_VM_REPORT"))?;
        let mut config = VmConfig::new(shape.vcpus, ram, kernel, initramfs::with_init(&program))?
            .with_boot_clock(BOOT_CLOCK_PORT);
        if let Ok(extra) = std::env::var(COMMAND_LINE_VARIABLE) {
            config = config.with_command_line(&extra)?;
        }
        if report.is_some() {
            config = config.with_kvm_stats();
        }
        let streams = if plan.workload.process.terminal.is_some() {
            HostStreams::terminal().map_err(step("open a terminal for the VMM"))?
        } else {
            HostStreams::take().map_err(step("take over the standard streams"))?
        };
        let failures = io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .map_err(step("keep standard error"))?;
        Ok(VmPayload {
            shape,
            exports,
            spec: Some(spec),
            cgroup: guest_limits::writes(&plan.resources)?,
            streams: Some(streams),
            console,
            boot_limit: boot_limit()?,
            kernel_path,
            report,
            failures: failures.into(),
            null: File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map_err(step("open /dev/null"))?,
            parts: Some(Parts { kvm, config }),
            builder: None,
            root: None,
            supervisor: None,
        })
    }

    /// Enters the cell and starts the guest.
    fn power_on(&mut self) -> Result<Supervisor, VmError> {
        let root = self.root.take().ok_or(VmError::OutOfOrder)?;
        let builder = self.builder.take().ok_or(VmError::OutOfOrder)?;
        let mut machine = builder
            .join()
            .map_err(|_| VmError::OutOfOrder)?
            .map_err(|source| {
                let kernel = std::mem::take(&mut self.kernel_path);
                VmError::Build { kernel, source }
            })?;
        let EnteredCell { root, proc_self_fd } = root
            .enter()
            .map_err(io::Error::other)
            .map_err(step("enter the cell"))?;
        let mut streams = self.streams.take().ok_or(VmError::OutOfOrder)?;
        let master = streams
            .adopt_terminal()
            .map_err(step("make the terminal the VMM's own"))?;
        if let (Some(console), Some(master)) = (self.console.take(), master) {
            sync::send_descriptor(console.as_fd(), "/dev/ptmx", master.as_fd())
                .map_err(step("hand the terminal over to the console socket"))?;
        }
        stdio::detach(self.null.as_fd()).map_err(step("detach the standard streams"))?;
        let mut fs = FsConfig::new(FS_TAG, root, proc_self_fd);
        fs.cache = CachePolicy::cell();
        let fs = Fs::new(fs)
            .map_err(io::Error::other)
            .map_err(step("make the file server"))?;
        let (vsock, handle) = Vsock::new(VsockConfig { guest_cid: GUEST_CID })
            .map_err(io::Error::other)
            .map_err(step("make the vsock device"))?;
        machine.attach(Box::new(vsock), Worker::Shared)?;
        machine.attach(Box::new(fs), Worker::Own)?;
        machine.attach(Box::new(Rng::new()), Worker::Shared)?;
        let signals = Signals::block().map_err(step("take over the signals"))?;
        let mut entropy = vec![0; ENTROPY];
        rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
            .map_err(step("get random bytes"))?;
        let assignment = Assignment {
            spec: self.spec.take().ok_or(VmError::OutOfOrder)?,
            cgroup: std::mem::take(&mut self.cgroup),
            streams,
            entropy,
        };
        let vm = machine.start()?;
        Supervisor::new(vm, handle, signals, assignment).map_err(step("make a control stream to the guest"))
    }
}

fn boot_limit() -> Result<Duration, VmError> {
    let Ok(value) = std::env::var(BOOT_LIMIT_VARIABLE) else {
        return Ok(BOOT_LIMIT);
    };
    match value.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(VmError::Variable {
            variable: BOOT_LIMIT_VARIABLE,
            value,
        }),
    }
}

impl Payload for VmPayload {
    fn limits(&self, resources: &Resources) -> Resources {
        guest_limits::of_the_host(resources, &self.shape)
    }

    fn begin(&mut self, _plan: &Plan) -> Result<(), PayloadError> {
        let Parts { kvm, config } = self.parts.take().ok_or(VmError::OutOfOrder)?;
        let builder = std::thread::Builder::new()
            .name("vm builder".to_owned())
            .spawn(move || Machine::build(kvm, config))
            .map_err(step("start the builder thread"))?;
        self.builder = Some(builder);
        Ok(())
    }

    fn build_root(&mut self, _plan: &Plan) -> Result<(), PayloadError> {
        self.root = Some(cell_root::build(&self.exports)?);
        Ok(())
    }

    fn prepare(&mut self, _plan: &Plan) -> Result<(), PayloadError> {
        let mut supervisor = self.power_on()?;
        if let Err(failure) = supervisor.boot(self.boot_limit) {
            drop(supervisor.finish());
            return Err(failure.into());
        }
        if let Some(report) = &mut self.report {
            report.created(&supervisor.ram());
        }
        self.supervisor = Some(supervisor);
        Ok(())
    }

    fn serve(mut self: Box<Self>, _plan: &Plan, control: UnixListener) -> ! {
        let Some(mut supervisor) = self.supervisor.take() else {
            std::process::exit(VM_DIED)
        };
        let result = supervise(&mut supervisor, &control);
        let vm = supervisor.finish();
        if let Some(report) = &mut self.report {
            report.ended(&vm, &self.shape);
        }
        drop(vm);
        match result {
            Ok(status) => std::process::exit(status),
            Err(failure) => {
                crate::report::log::error(&failure.to_string());
                // Standard error may be gone; the log has it then.
                let _lost = writeln!(self.failures, "moat: {failure}");
                std::process::exit(VM_DIED)
            }
        }
    }
}

/// Until the workload has ended and its output is delivered; the exit status to end with.
fn supervise(supervisor: &mut Supervisor, control: &UnixListener) -> Result<i32, VmFailure> {
    loop {
        if let Some(status) = supervisor.outcome() {
            return Ok(status.shell_code().into());
        }
        if supervisor.wait(control.as_fd())?
            && let Some(status) = answer(supervisor, control)?
        {
            return Ok(status);
        }
    }
}

/// Answers one client. The exit status to end with, when the workload could not be executed.
fn answer(supervisor: &mut Supervisor, control: &UnixListener) -> Result<Option<i32>, VmFailure> {
    let Ok((client, _)) = control.accept() else {
        return Ok(None);
    };
    // Without a limit, a client that says nothing would keep the VM from being supervised.
    if client.set_read_timeout(Some(CLIENT_PATIENCE)).is_err() {
        return Ok(None);
    }
    let reply = match control::receive(&client) {
        Ok(Some(ControlRequest::Start)) if supervisor.is_created() => supervisor.start(),
        Ok(Some(ControlRequest::Start)) => {
            let reply = ControlReply::Failed("the container has been started already".to_owned());
            // A client that has gone needs no answer.
            let _told = control::send(&client, &reply);
            return Ok(None);
        }
        Ok(None) | Err(_) => return Ok(None),
    };
    let told = match &reply {
        Ok(()) => ControlReply::Done,
        Err(failure) => ControlReply::Failed(failure.to_string()),
    };
    let _told = control::send(&client, &told);
    match reply {
        Ok(()) => Ok(None),
        Err(VmFailure {
            cause: Cause::Refused(_),
            ..
        }) => Ok(Some(NOT_STARTED)),
        Err(failure) => Err(failure),
    }
}
