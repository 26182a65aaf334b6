//! Boots a kernel with a program as its init and tells how it went:
//!
//!     boot KERNEL INIT [VCPUS [MEMORY_MIB [EXTRA KERNEL PARAMETERS]]]
//!
//! Prints marks, exits and, with `CONSOLE=1` or when the guest did not end by itself or its console lacks
//! the text in `EXPECT`, the console. The
//! guest gets the folder `SHARE` (if set) by virtio-fs under the tag `share`, an entropy device, a disk of 1 MiB that can be written and one that cannot. Gives up after
//! `TIMEOUT` seconds (60). `probe-init` is an init that checks all of it.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use moat_vmm::boot::initramfs;
use moat_vmm::builder::{Machine, Worker};
use moat_vmm::config::VmConfig;
use moat_vmm::devices::virtio::block::{Block, BlockConfig};
use moat_vmm::devices::virtio::fs::{Fs, FsConfig};
use moat_vmm::devices::virtio::rng::Rng;
use moat_vmm::vm::{ExitReason, RunningVm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

const DISK: u64 = 1 << 20;

/// KVM's own counts worth a look (kernel `arch/x86/include/asm/kvm_host.h`, `kvm_vcpu_stat`).
const STATISTICS: &[&str] = &[
    "exits",
    "io_exits",
    "mmio_exits",
    "irq_exits",
    "halt_exits",
    "pf_taken",
    "pf_fixed",
    "insn_emulation",
];

fn disk(id: &str, read_only: bool) -> Result<Box<Block>, Box<dyn Error>> {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
    file.set_len(DISK)?;
    file.write_all_at(b"moat disk", DISK / 2)?;
    Ok(Box::new(Block::new(BlockConfig {
        file,
        read_only,
        id: id.to_owned(),
    })?))
}

fn start(args: &[String]) -> Result<RunningVm, Box<dyn Error>> {
    let number = |at: usize, default: u32| args.get(at).map_or(Ok(default), |text| text.parse());
    let (kernel, init) = (File::open(&args[0])?, std::fs::read(&args[1])?);
    let extra = args.get(4..).unwrap_or_default().join(" ");
    let config = VmConfig::new(
        number(2, 1)?,
        number(3, 128)?,
        kernel,
        initramfs::with_init(&init),
    )?
    .with_command_line(&extra)?
    .with_kvm_stats();
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let mut machine = Machine::build(kvm, config)?;
    machine.attach(Box::new(Rng::new()), Worker::Shared)?;
    machine.attach(disk("first", false)?, Worker::Shared)?;
    machine.attach(disk("second", true)?, Worker::Own)?;
    if let Some(share) = std::env::var_os("SHARE") {
        let (root, fds) = (File::open(share)?.into(), File::open("/proc/self/fd")?.into());
        machine.attach(Box::new(Fs::new(FsConfig::new("share", root, fds))?), Worker::Own)?;
    }
    Ok(machine.start()?)
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is a program to look at"
)]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.len() < 2 {
        eprintln!("usage: boot KERNEL INIT [VCPUS [MEMORY_MIB [PARAMETER...]]]");
        return ExitCode::from(2);
    }
    let mut vm = match start(&args) {
        Ok(vm) => vm,
        Err(error) => {
            let mut cause = Some(&*error as &dyn Error);
            while let Some(error) = cause {
                eprintln!("boot: {error}");
                cause = error.source();
            }
            return ExitCode::FAILURE;
        }
    };
    let seconds = std::env::var("TIMEOUT")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60);
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let ended = poll(
        &mut [PollFd::from_borrowed_fd(vm.ended().as_fd(), PollFlags::IN)],
        Some(&timeout),
    );
    let stats = vm.stats();
    for name in STATISTICS {
        println!(
            "kvm {name} {}",
            vm.kvm_statistic(name)
                .map_or("unknown".to_owned(), |n| n.to_string())
        );
    }
    let reason = vm.stop();
    let console = vm.console();
    for mark in vm.marks() {
        println!("mark {:#04x} at {:?}", mark.number, mark.at);
    }
    println!("exits {:?} kvm {:?}", stats.vmm_exits, stats.kvm_exits);
    println!("ended: {reason} (poll {ended:?})");
    let expected = std::env::var("EXPECT").unwrap_or_default();
    let good = reason == ExitReason::GuestReset && console.contains(&expected);
    if !good || std::env::var_os("CONSOLE").is_some() {
        println!("{console}");
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
