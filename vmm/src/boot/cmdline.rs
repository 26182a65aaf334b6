//! The kernel's command line. Each parameter is here because it saves guest instructions or exits, or
//! because an answer depends on it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::devices::virtio::GuestMemory;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_SIZE, FIRST_SLOT_IRQ, slot_address};

/// For every VM.
const ALWAYS: &[&str] = &[
    // The console goes to a ring in the VMM. Level 1 keeps emergencies: below it, a kernel does not even
    // raise the level for a panic (`console_verbose`), and the error would have nothing to show.
    "console=ttyS0",
    "quiet",
    "loglevel=1",
    // A panic reboots at once, and a reboot is one write to the keyboard controller: the VM ends.
    "panic=-1",
    "reboot=k",
    // No modules, and none looked for.
    "nomodule",
    "cryptomgr.notests",
    // KVM's timers need no proof, its TSC no watchdog; kvm-clock tells the frequency.
    "no_timer_check",
    "tsc=reliable",
    // With memory above 4 GiB a kernel sets 64 MiB aside for devices that cannot reach it: none here.
    "swiotlb=noforce",
    // One UART to probe, not four.
    "8250.nr_uarts=1",
    // The host's random numbers reach the guest by RDRAND and virtio-rng.
    "random.trust_cpu=on",
    // Boot and teardown wait for grace periods; a guest is small, so let them be short.
    "rcupdate.rcu_expedited=1",
];

/// For VMs with one vCPU: the kernel need not patch itself from SMP to UP, and cannot get a second CPU.
const ONE_VCPU: &[&str] = &["noreplace-smp", "nr_cpus=1"];

/// Why a command line cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {
    /// More than the kernel keeps.
    #[error("kernel command line of {0} bytes, a kernel keeps {COMMAND_LINE_SIZE}")]
    TooLong(usize),
    /// Guest memory cannot take it; a bug.
    #[error("cannot write the kernel command line")]
    Write(#[source] GuestMemoryError),
}

/// The command line of a VM with these vCPUs and virtio-mmio slots, `extra` behind.
pub fn compose(vcpus: u8, slots: usize, extra: &str) -> String {
    let mut words: Vec<String> = ALWAYS.iter().map(|word| (*word).to_owned()).collect();
    if vcpus == 1 {
        words.extend(ONE_VCPU.iter().map(|word| (*word).to_owned()));
    }
    // Kernel `drivers/virtio/virtio_mmio.c`: size@address:interrupt.
    words.extend((0..slots).map(|slot| {
        format!(
            "virtio_mmio.device=4K@{:#x}:{}",
            slot_address(slot),
            FIRST_SLOT_IRQ as usize + slot
        )
    }));
    if !extra.is_empty() {
        words.push(extra.to_owned());
    }
    words.join(" ")
}

/// Writes `line` with its NUL to its place.
///
/// # Errors
/// See [`CommandLineError`].
pub fn write(memory: &GuestMemory, line: &str) -> Result<(), CommandLineError> {
    if line.len() >= COMMAND_LINE_SIZE {
        return Err(CommandLineError::TooLong(line.len()));
    }
    memory
        .write_slice(line.as_bytes(), COMMAND_LINE)
        .map_err(CommandLineError::Write)?;
    let end = GuestAddress(COMMAND_LINE.0 + line.len() as u64);
    memory.write_obj(0u8, end).map_err(CommandLineError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_EXTRA_COMMAND_LINE;
    use crate::devices::virtio::test_driver::test_memory;
    use crate::layout::SLOTS;

    #[test]
    fn devices_and_own_parameters_come_last() {
        let line = compose(1, 2, "ip=none");
        let tail = "noreplace-smp nr_cpus=1 virtio_mmio.device=4K@0xc0000000:5 \
                    virtio_mmio.device=4K@0xc0001000:6 ip=none";
        assert!(line.ends_with(tail), "{line}");
        assert!(!compose(2, 0, "").contains("noreplace-smp"));
    }

    #[test]
    fn longest_command_line_fits() {
        let line = compose(1, SLOTS, &"x".repeat(MAX_EXTRA_COMMAND_LINE));
        let memory = test_memory(1 << 20);
        memory
            .write_slice(&[0xff; COMMAND_LINE_SIZE], COMMAND_LINE)
            .unwrap();
        write(&memory, &line).unwrap();
        let mut seen = vec![0; line.len() + 1];
        memory.read_slice(&mut seen, COMMAND_LINE).unwrap();
        assert_eq!(seen, [line.as_bytes(), b"\0"].concat());
    }
}
