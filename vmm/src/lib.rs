//! A microVM: configuration in, exit reason out. Knows nothing of containers.
//!
//! ```text
//!   VmConfig ──► Machine::build ──► attach devices ──► walls ──► start ──► RunningVm ──► ExitReason
//!                no thread,          fs, vsock, rng,             threads,   ended(), marks(),
//!                no guest code       block                       guest      console(), stop()
//! ```
//!
//! How it boots: [`builder`], top to bottom. How a device is made: [`devices::virtio::rng`]. Which thread
//! does what: one per vCPU, which runs the guest and serves its port and register accesses; one for
//! devices that never block; one for each that may.
//!
//! ```no_run
//! use std::fs::File;
//!
//! use moat_vmm::boot::initramfs;
//! use moat_vmm::builder::{Machine, Worker};
//! use moat_vmm::config::VmConfig;
//! use moat_vmm::devices::virtio::rng::Rng;
//! use moat_vmm::vm::ExitReason;
//! use rustix::event::{PollFd, PollFlags, poll};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (kernel, init) = (File::open("vmlinux")?, std::fs::read("guest-init")?);
//! let config = VmConfig::new(2, 256, kernel, initramfs::with_init(&init))?;
//! let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
//!
//! // On a builder thread, while the main thread mounts:
//! let mut machine = Machine::build(kvm, config)?;
//! // When the devices' descriptors are there:
//! machine.attach(Box::new(Rng::new()), Worker::Shared)?;
//! // When the walls are up:
//! let mut vm = machine.start()?;
//!
//! // The embedder's own poll has `vm.ended()` and `vm.mark_event()` among its descriptors. Here:
//! let mut fds = [PollFd::from_borrowed_fd(vm.ended(), PollFlags::IN)];
//! poll(&mut fds, None)?;
//! match vm.stop() {
//!     ExitReason::GuestReset | ExitReason::Stopped => {}
//!     reason => eprintln!("{reason}; its last words: {:#?}", vm.console_tail(20)),
//! }
//! # Ok(())
//! # }
//! ```

pub mod boot;
pub mod builder;
pub mod bus;
pub mod config;
pub mod devices;
pub mod event;
pub mod event_loop;
pub mod extensions;
pub mod irq;
mod kvm;
pub mod layout;
pub mod memory;
pub mod speed;
pub mod vcpu;
pub mod vm;
