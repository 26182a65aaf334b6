//! The machine under guests of a few bytes: how VMs end, stop and pause. Needs `/dev/kvm`; guests this small
//! run on a KVM that emulates kernel mode too.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "functions that tests share; a skip says why"
)]

use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use moat_vmm::boot::initramfs;
use moat_vmm::builder::{Machine, MachineError, ThreadRole, Worker};
use moat_vmm::config::VmConfig;
use moat_vmm::devices::virtio::rng::Rng;
use moat_vmm::vm::{ExitReason, RunningVm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SPIN: &[u8] = &[0xeb, 0xfe]; // jmp self
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd]; // hlt; jmp to it
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
const FAULT: &[u8] = &[0x0f, 0x0b]; // ud2, and there is no IDT
const CALL: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc]; // again: out 0x80, al; jmp again

/// `mov dx, port; mov al, value; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// An ELF64 file of one segment, loaded and entered at 16 MiB.
fn kernel(code: &[u8]) -> File {
    let entry = 16u64 << 20;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for field in [entry, 64, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [120, entry, entry, code.len() as u64, code.len() as u64, 0x1000] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn config(vcpus: u32, code: &[u8]) -> VmConfig {
    VmConfig::new(vcpus, 128, kernel(code), initramfs::with_init(b"none")).unwrap()
}

fn kvm() -> Option<File> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        assert!(std::env::var_os("REQUIRE").is_none_or(|list| !list.to_string_lossy().contains("kvm")));
        println!("skipped: cannot open /dev/kvm: {error}");
    }
    kvm.ok()
}

fn start(vcpus: u32, code: &[u8]) -> Option<RunningVm> {
    Some(
        Machine::build(kvm()?, config(vcpus, code))
            .unwrap()
            .start()
            .unwrap(),
    )
}

fn readable_within(fd: BorrowedFd<'_>, seconds: i64) -> bool {
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

fn ended(vm: &RunningVm) -> ExitReason {
    assert!(readable_within(vm.ended(), 10), "the guest does not end");
    vm.exit_reason().unwrap()
}

#[test]
fn reset_ends_the_vm() {
    let Some(mut vm) = start(1, RESET) else { return };
    assert_eq!(ended(&vm), ExitReason::GuestReset);
    assert_eq!(vm.stop(), ExitReason::GuestReset, "the first reason stays");
    assert_eq!(vm.stats().vmm_exits.io_out, 1);
}

#[test]
fn fault_without_handlers_is_a_triple_fault() {
    let Some(vm) = start(1, FAULT) else { return };
    match ended(&vm) {
        ExitReason::TripleFault { vcpu: 0 } => {}
        // A KVM that emulates kernel mode gives up at the instruction instead.
        ExitReason::InternalError {
            vcpu: 0, rip, code, ..
        } => {
            assert_eq!((rip, code.get(..2)), (16 << 20, Some(FAULT)));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn marks_and_console_come_through_and_are_announced() {
    let code = [
        out(0x3e0, 0x10),
        out(0x3f8, b'h'),
        out(0x3f8, b'i'),
        out(0x3e0, 0x11),
        SPIN.to_vec(),
    ]
    .concat();
    let Some(mut vm) = start(1, &code) else { return };
    while vm.marks().len() < 3 {
        assert!(
            readable_within(vm.mark_event(), 10),
            "the second mark does not come"
        );
    }
    let marks = vm.marks();
    assert_eq!(
        marks.iter().map(|mark| mark.number).collect::<Vec<_>>(),
        [0, 0x10, 0x11]
    );
    assert!(marks[1].at > Duration::ZERO && marks[2].at >= marks[1].at);
    assert_eq!(vm.console(), "hi");
    assert_eq!(vm.exit_reason(), None);
    assert_eq!(vm.stop(), ExitReason::Stopped);
}

#[test]
fn panic_on_the_console_is_told_from_a_reset() {
    let text = b"Kernel panic - not syncing: test\n";
    let mut code: Vec<u8> = text.iter().flat_map(|byte| out(0x3f8, *byte)).collect();
    code.extend_from_slice(RESET);
    let Some(vm) = start(1, &code) else { return };
    assert_eq!(ended(&vm), ExitReason::GuestPanic);
}

#[test]
fn stop_gets_vcpus_out_that_spin_or_halt_or_wait_for_their_start() {
    for code in [SPIN, HALT, CALL] {
        let Some(mut vm) = start(4, code) else { return };
        sleep(Duration::from_millis(20));
        let before = Instant::now();
        assert_eq!(vm.stop(), ExitReason::Stopped);
        assert!(
            before.elapsed() < Duration::from_secs(2),
            "{:?}",
            before.elapsed()
        );
    }
}

#[test]
fn stop_right_after_start_loses_no_kick() {
    for _ in 0..20 {
        let Some(mut vm) = start(2, SPIN) else { return };
        assert_eq!(vm.stop(), ExitReason::Stopped);
    }
}

#[test]
fn paused_vm_stands_still_and_goes_on() {
    let Some(mut vm) = start(2, CALL) else { return };
    let exits = |vm: &RunningVm| vm.stats().vmm_exits.io_out;
    let wait_for_more = |vm: &RunningVm, than: u64| {
        let start = Instant::now();
        while exits(vm) <= than {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the guest does not run"
            );
            sleep(Duration::from_millis(1));
        }
    };
    wait_for_more(&vm, 100);
    for _ in 0..3 {
        assert!(vm.pause());
        let before = exits(&vm);
        sleep(Duration::from_millis(20));
        assert_eq!(exits(&vm), before);
        assert!(vm.resume());
        wait_for_more(&vm, before);
    }
    assert!(vm.pause());
    assert_eq!(vm.stop(), ExitReason::Stopped);
    assert!(!vm.pause() && !vm.resume());
}

#[test]
fn threads_pass_the_hook_and_its_refusal_ends_the_vm() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::build(kvm.try_clone().unwrap(), config(2, SPIN)).unwrap();
    machine.attach(Box::new(Rng::new()), Worker::Shared).unwrap();
    machine.attach(Box::new(Rng::new()), Worker::Own).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&seen);
        move |role: &ThreadRole| {
            seen.lock().unwrap().push(format!("{role:?}"));
            match role {
                ThreadRole::Vcpu(1) => Err(std::io::Error::from_raw_os_error(libc::EPERM)),
                ThreadRole::Vcpu(_) | ThreadRole::Devices | ThreadRole::Device(_) => Ok(()),
            }
        }
    };
    let mut vm = machine.start_with(Arc::new(hook)).unwrap();
    let reason = ExitReason::HostError {
        during: "setting up a vCPU thread",
        errno: libc::EPERM,
    };
    assert_eq!(ended(&vm), reason);
    vm.stop();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, ["Device(\"rng\")", "Devices", "Vcpu(0)", "Vcpu(1)"]);
}

#[test]
fn slots_run_out_with_an_error() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::build(kvm, config(1, SPIN)).unwrap();
    for _ in 0..moat_vmm::layout::SLOTS {
        machine.attach(Box::new(Rng::new()), Worker::Shared).unwrap();
    }
    let error = machine.attach(Box::new(Rng::new()), Worker::Shared).unwrap_err();
    assert!(matches!(error, MachineError::NoSlot(_)), "{error}");
}

#[test]
fn other_files_are_not_kvm() {
    let error = Machine::build(File::open("/dev/null").unwrap(), config(1, SPIN))
        .err()
        .unwrap();
    assert!(matches!(error, MachineError::NotKvm), "{error}");
}

#[test]
fn nothing_is_left_of_vms_that_have_ended() {
    if kvm().is_none() {
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests of this program run at the same time: compare the fewest seen.
    let fewest = |n: usize| {
        (0..n)
            .map(|_| {
                drop(start(2, RESET));
                descriptors()
            })
            .min()
            .unwrap()
    };
    let (before, after) = (fewest(5), fewest(20));
    assert!(after <= before + 30, "{before} then {after} descriptors");
}
