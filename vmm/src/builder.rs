//! How a VM is built and started, top to bottom.
//!
//! 1. [`Machine::build`] makes everything that needs `/dev/kvm` and the kernel: VM, memory, interrupt
//!    controllers, vCPUs. It starts no thread and runs no guest, so it may be called on a helper thread
//!    while another prepares what the devices need.
//! 2. [`Machine::attach`] adds a virtio device; each gets the next slot.
//! 3. Whoever embeds the machine puts up its walls.
//! 4. [`Machine::start`] writes the command line, which names the slots, and starts the threads.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryError};
use vmm_sys_util::errno;

use crate::boot::cmdline::{self, CommandLineError};
use crate::boot::kernel::{self, KernelError};
use crate::boot::params::{self, ParamsError};
use crate::boot::{mptable, tables};
use crate::bus::Bus;
use crate::config::VmConfig;
use crate::devices::boot_clock::BootClock;
use crate::devices::serial::{Console, SerialPort};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::{GuestMemory, VirtioDevice};
use crate::event::Event;
use crate::event_loop::{EventLoop, EventLoopError, Served};
use crate::extensions::NEEDED;
use crate::irq::{self, IrqError};
use crate::layout::{FIRST_SLOT_IRQ, KVM_IDENTITY_MAP, KVM_TSS, SERIAL_IRQ, SLOTS, slot_address};
use crate::memory::{self, MemoryError};
use crate::vcpu::control::Control;
use crate::vcpu::cpuid::Topology;
use crate::vcpu::{Parts, Vcpu, VcpuError, kick};
use crate::vm::{DeviceThread, ExitReason, RunningVm, VcpuHandle};
use crate::{kvm, layout};

/// The only version of the API there ever was.
const KVM_API_VERSION: i32 = 12;

/// Most leaves that KVM hands out at once (`KVM_MAX_CPUID_ENTRIES` of the kernel).
const MAX_CPUID: usize = 256;

/// Why a VM cannot be built or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The file is not KVM, or one from another world.
    #[error("the given file is not a KVM device with API version {KVM_API_VERSION}")]
    NotKvm,
    /// This KVM is too old or too small.
    #[error("this KVM lacks {0}")]
    Lacks(&'static str),
    /// This KVM takes fewer vCPUs.
    #[error("this KVM takes {most} vCPUs, {wanted} were asked for")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u8,
        /// What is possible.
        most: usize,
    },
    /// An ioctl failed.
    #[error("cannot set up the VM: {ioctl}")]
    Kvm {
        /// Its name.
        ioctl: &'static str,
        /// KVM's answer.
        #[source]
        source: errno::Error,
    },
    /// No RAM.
    #[error("cannot make the guest's memory")]
    Memory(#[source] MemoryError),
    /// Not a kernel.
    #[error("cannot load the guest's kernel")]
    Kernel(#[source] KernelError),
    /// Initramfs or zero page.
    #[error("cannot prepare the guest's boot")]
    Params(#[source] ParamsError),
    /// MP table, GDT or page tables; a bug.
    #[error("cannot write the guest's boot tables")]
    Tables(#[source] GuestMemoryError),
    /// Too many devices for the command line.
    #[error("cannot make the kernel's command line")]
    CommandLine(#[source] CommandLineError),
    /// An interrupt line.
    #[error("cannot connect an interrupt")]
    Irq(#[source] IrqError),
    /// A vCPU.
    #[error("cannot make the vCPUs")]
    Vcpu(#[source] VcpuError),
    /// More devices than interrupt pins.
    #[error("no slot left for device {0}: there are {SLOTS}")]
    NoSlot(String),
    /// An eventfd.
    #[error("cannot make an eventfd")]
    Event(#[source] io::Error),
    /// A device thread's loop.
    #[error("cannot set up a device thread")]
    EventLoop(#[source] EventLoopError),
    /// The host starts no thread, or not as it must be.
    #[error("cannot start thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

fn failed(ioctl: &'static str) -> impl Fn(errno::Error) -> MachineError {
    move |source| MachineError::Kvm { ioctl, source }
}

/// Which thread serves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// The one that most devices share: for devices that never block.
    Shared,
    /// One of its own: for devices that wait for files.
    Own,
}

/// What a thread of the VMM does, for whoever gives each its walls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThreadRole {
    /// Runs a vCPU.
    Vcpu(u8),
    /// Serves the shared devices.
    Devices,
    /// Serves the device of this name alone.
    Device(String),
}

impl ThreadRole {
    /// Name of the thread; Linux shows 15 characters.
    fn name(&self) -> String {
        match self {
            ThreadRole::Vcpu(index) => format!("vcpu{index}"),
            ThreadRole::Devices => "devices".to_owned(),
            ThreadRole::Device(name) => format!("dev-{name}"),
        }
    }
}

/// Called at the start of each thread, on it: seccomp filters, capabilities. An error ends the VM.
pub type ThreadHook = dyn Fn(&ThreadRole) -> io::Result<()> + Send + Sync;

struct Slot {
    transport: Arc<MmioTransport>,
    kicks: Vec<Event>,
    worker: Worker,
}

/// A VM that does not run yet.
pub struct Machine {
    vm: VmFd,
    memory: GuestMemory,
    vcpus: Vec<Vcpu>,
    slots: Vec<Slot>,
    serial: SerialPort,
    console: Arc<Console>,
    boot_clock: Arc<BootClock>,
    boot_clock_port: u16,
    command_line: String,
}

impl Machine {
    /// Builds a VM on `kvm`, an opened `/dev/kvm`. KVM ties it to the calling process's address space.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn build(kvm: File, config: VmConfig) -> Result<Machine, MachineError> {
        let kvm = kvm::from_file(kvm);
        check(&kvm, config.vcpus())?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;

        let memory = memory::map(config.memory_mib()).map_err(MachineError::Memory)?;
        kvm::add_ram(&vm, &memory).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        let entry = load(&memory, &config)?;

        // Before the first vCPU, as the API demands of the interrupt controllers and VMX of the rest.
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(KVM_TSS).expect("usize has 64 bits here");
        vm.set_tss_address(tss).map_err(failed("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;

        let supported = kvm
            .get_supported_cpuid(MAX_CPUID)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        // KVM_CAP_TSC_DEADLINE_TIMER. Without a PIT, which this machine has not, it is needed; KVM's own
        // APIC has it on every host with an invariant TSC.
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let topology = Topology {
            vcpus: config.vcpus(),
            tsc_deadline,
        };
        let kvm_stats = config.kvm_stats();
        let parts = Parts {
            vm: &vm,
            memory: &memory,
            supported: &supported,
            topology,
            entry,
            kvm_stats,
        };
        let vcpus = (0..config.vcpus())
            .map(|index| Vcpu::new(index, &parts))
            .collect::<Result<_, _>>();
        let vcpus = vcpus.map_err(MachineError::Vcpu)?;

        let console = Arc::new(Console::default());
        let line = irq::line(&vm, SERIAL_IRQ).map_err(MachineError::Irq)?;
        let serial = SerialPort::new(line, Arc::clone(&console));
        let boot_clock = Arc::new(BootClock::new().map_err(MachineError::Event)?);
        Ok(Machine {
            vm,
            memory,
            vcpus,
            slots: Vec::new(),
            serial,
            console,
            boot_clock,
            boot_clock_port: config.boot_clock_port(),
            command_line: config.command_line().to_owned(),
        })
    }

    /// Adds a device in the next slot: interrupt by irqfd, kicks by ioeventfds.
    ///
    /// # Errors
    /// [`MachineError::NoSlot`], or what KVM or the host refuse.
    pub fn attach(&mut self, device: Box<dyn VirtioDevice>, worker: Worker) -> Result<(), MachineError> {
        let index = self.slots.len();
        if index == SLOTS {
            return Err(MachineError::NoSlot(device.name().to_owned()));
        }
        let pin = FIRST_SLOT_IRQ + u32::try_from(index).expect("fewer slots than pins");
        let line = irq::line(&self.vm, pin).map_err(MachineError::Irq)?;
        let address = IoEventAddress::Mmio(slot_address(index) + QUEUE_NOTIFY);
        let mut kicks = Vec::new();
        for (queue, _) in (0u32..).zip(device.queue_sizes()) {
            let kick = Event::new().map_err(MachineError::Event)?;
            self.vm
                .register_ioevent(kick.eventfd(), &address, queue)
                .map_err(failed("KVM_IOEVENTFD"))?;
            kicks.push(kick);
        }
        let transport = MmioTransport::new(device, self.memory.clone(), Interrupt::new(line));
        self.slots.push(Slot {
            transport: Arc::new(transport),
            kicks,
            worker,
        });
        Ok(())
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// See [`MachineError`]; no thread is left then.
    pub fn start(self) -> Result<RunningVm, MachineError> {
        self.start_with(Arc::new(|_: &ThreadRole| Ok(())))
    }

    /// Starts the guest; each thread calls `hook` before it does anything else.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn start_with(self, hook: Arc<ThreadHook>) -> Result<RunningVm, MachineError> {
        let vcpus = u8::try_from(self.vcpus.len()).expect("32 at the most");
        let line = cmdline::compose(vcpus, self.slots.len(), &self.command_line);
        cmdline::write(&self.memory, &line).map_err(MachineError::CommandLine)?;
        let thread_error = |source| MachineError::Thread {
            name: "vcpu0".to_owned(),
            source,
        };
        kick::install_handler().map_err(thread_error)?;

        let control = Arc::new(Control::new(Event::new().map_err(MachineError::Event)?));
        let bus = Arc::new(Bus {
            serial: Mutex::new(self.serial),
            console: self.console,
            boot_clock: self.boot_clock,
            boot_clock_port: self.boot_clock_port,
            slots: self
                .slots
                .iter()
                .map(|slot| Arc::clone(&slot.transport))
                .collect(),
        });
        // From here on an early return drops `running`, which stops what has been started.
        let mut running = RunningVm {
            control: Arc::clone(&control),
            bus: Arc::clone(&bus),
            vcpus: Vec::new(),
            devices: Vec::new(),
            _vm: self.vm,
            memory: self.memory,
        };
        for (role, served) in device_threads(self.slots) {
            let thread = start_devices(role, served, &control, &hook)?;
            running.devices.push(thread);
        }
        bus.boot_clock.start();
        for (index, vcpu) in (0u8..).zip(self.vcpus) {
            let thread = start_vcpu(index, vcpu, &control, &bus, &hook)?;
            running.vcpus.push(thread);
        }
        Ok(running)
    }

    /// The guest's memory, for measurements.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// What KVM must have for this VM.
fn check(kvm: &Kvm, vcpus: u8) -> Result<(), MachineError> {
    if kvm.get_api_version() != KVM_API_VERSION {
        return Err(MachineError::NotKvm);
    }
    if let Some((_, name)) = NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(MachineError::Lacks(name));
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most {
        return Err(MachineError::TooManyVcpus { wanted: vcpus, most });
    }
    Ok(())
}

/// Fills memory with all but the command line, and returns where the kernel starts.
fn load(memory: &GuestMemory, config: &VmConfig) -> Result<GuestAddress, MachineError> {
    let kernel = kernel::load(memory, config.kernel()).map_err(MachineError::Kernel)?;
    let initramfs = config.initramfs();
    params::expect_early_allocations(memory, initramfs.len());
    let at = params::place_initramfs(memory, kernel.end, initramfs).map_err(MachineError::Params)?;
    params::write(memory, (at, initramfs.len())).map_err(MachineError::Params)?;
    tables::write(memory).map_err(MachineError::Tables)?;
    // Also for one vCPU: it tells the wiring of the IOAPIC.
    mptable::write(memory, config.vcpus()).map_err(MachineError::Tables)?;
    debug_assert!(kernel.entry.0 >= layout::HIGH_MEMORY_START);
    Ok(kernel.entry)
}

/// Deals the devices out to threads.
fn device_threads(slots: Vec<Slot>) -> Vec<(ThreadRole, Vec<Served>)> {
    let (mut shared, mut threads) = (Vec::new(), Vec::new());
    for Slot {
        transport,
        kicks,
        worker,
    } in slots
    {
        let name = transport.with_device(|device| device.name().to_owned());
        let served = Served { transport, kicks };
        match worker {
            Worker::Shared => shared.push(served),
            Worker::Own => threads.push((ThreadRole::Device(name), vec![served])),
        }
    }
    if !shared.is_empty() {
        threads.push((ThreadRole::Devices, shared));
    }
    threads
}

fn start_devices(
    role: ThreadRole,
    served: Vec<Served>,
    control: &Arc<Control>,
    hook: &Arc<ThreadHook>,
) -> Result<DeviceThread, MachineError> {
    let (event_loop, stop) = EventLoop::new(served).map_err(MachineError::EventLoop)?;
    let (control, hook) = (Arc::clone(control), Arc::clone(hook));
    let thread = spawn(role, move |role| {
        if let Err(error) = kick::prepare_thread(false).and_then(|()| hook(role)) {
            return control.end(host_error("setting up a device thread", &error));
        }
        if let Err(error) = event_loop.run() {
            control.end(ExitReason::HostError {
                during: "a device thread's epoll_wait",
                errno: error.errno(),
            });
        }
    })?;
    Ok(DeviceThread {
        thread: Some(thread),
        stop,
    })
}

fn start_vcpu(
    index: u8,
    mut vcpu: Vcpu,
    control: &Arc<Control>,
    bus: &Arc<Bus>,
    hook: &Arc<ThreadHook>,
) -> Result<VcpuHandle, MachineError> {
    let (kick, counters, kvm_stats) = (vcpu.kick(), vcpu.counters(), vcpu.take_kvm_stats());
    let (control, bus, hook) = (Arc::clone(control), Arc::clone(bus), Arc::clone(hook));
    let thread = spawn(ThreadRole::Vcpu(index), move |role| {
        match kick::prepare_thread(true).and_then(|()| hook(role)) {
            Ok(()) => vcpu.run(&control, &bus),
            Err(error) => control.end(host_error("setting up a vCPU thread", &error)),
        }
    })?;
    Ok(VcpuHandle {
        thread: Some(thread),
        kick,
        counters,
        kvm_stats,
    })
}

fn spawn(
    role: ThreadRole,
    body: impl FnOnce(&ThreadRole) + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, MachineError> {
    let name = role.name();
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || body(&role))
        .map_err(|source| MachineError::Thread { name, source })
}

fn host_error(during: &'static str, error: &io::Error) -> ExitReason {
    ExitReason::HostError {
        during,
        errno: error.raw_os_error().unwrap_or(0),
    }
}
