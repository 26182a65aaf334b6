//! What a microVM is made of. A [`VmConfig`] that exists is valid: nothing downstream checks again.

use std::fs::File;

use crate::layout::COMMAND_LINE_SIZE;

/// Most vCPUs: what one MP table in 1 KiB and 8-bit APIC ids hold with ease.
pub const MAX_VCPUS: u8 = 32;

/// Memory comes in this unit, the section size of x86-64 kernels: with a part of one, the guest kernel
/// spends instructions on the hole, and clones of a template could not share whole sections.
pub const MEMORY_UNIT_MIB: u32 = 128;

/// Most memory: 1 TiB. Any more is a mistake in a unit.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Largest initramfs. guest-init is about 1 MiB; the limit keeps it and a kernel within 128 MiB.
pub const MAX_INITRAMFS: usize = 32 << 20;

/// Command line room left to the caller: the machine adds its own parameters and devices.
pub const MAX_EXTRA_COMMAND_LINE: usize = COMMAND_LINE_SIZE / 2;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not 1 to [`MAX_VCPUS`].
    #[error("{0} vCPUs asked for, 1 to {MAX_VCPUS} are possible")]
    Vcpus(u32),
    /// Not a multiple of [`MEMORY_UNIT_MIB`] up to [`MAX_MEMORY_MIB`].
    #[error("{0} MiB of memory asked for, possible are multiples of {MEMORY_UNIT_MIB} MiB up to 1 TiB")]
    Memory(u32),
    /// Empty, or more than [`MAX_INITRAMFS`].
    #[error("initramfs of {0} bytes, 1 to {MAX_INITRAMFS} are possible")]
    Initramfs(usize),
    /// Longer than [`MAX_EXTRA_COMMAND_LINE`].
    #[error("command line of {0} bytes, at most {MAX_EXTRA_COMMAND_LINE} can be added")]
    CommandLineTooLong(usize),
    /// Other than printable ASCII, or `--`, after which a kernel hands all to init.
    #[error("command line holds something else than printable ASCII parameters")]
    CommandLineText,
}

/// One microVM.
#[derive(Debug)]
pub struct VmConfig {
    vcpus: u8,
    memory_mib: u32,
    kernel: File,
    initramfs: Vec<u8>,
    command_line: String,
    boot_clock_port: u16,
    kvm_stats: bool,
}

impl VmConfig {
    /// A VM with `vcpus` processors and `memory_mib` MiB of RAM that runs `kernel`, an ELF64 vmlinux open
    /// for reading (its file position is used), and `initramfs`, a newc cpio archive as
    /// [`crate::boot::initramfs::with_init`] makes it.
    ///
    /// # Errors
    /// Which argument is out of its range.
    pub fn new(
        vcpus: u32,
        memory_mib: u32,
        kernel: File,
        initramfs: Vec<u8>,
    ) -> Result<VmConfig, ConfigError> {
        let count = u8::try_from(vcpus).ok().filter(|n| (1..=MAX_VCPUS).contains(n));
        let count = count.ok_or(ConfigError::Vcpus(vcpus))?;
        if memory_mib == 0 || !memory_mib.is_multiple_of(MEMORY_UNIT_MIB) || memory_mib > MAX_MEMORY_MIB {
            return Err(ConfigError::Memory(memory_mib));
        }
        if initramfs.is_empty() || initramfs.len() > MAX_INITRAMFS {
            return Err(ConfigError::Initramfs(initramfs.len()));
        }
        let command_line = String::new();
        // A port that is unused on PCs and takes single bytes; guests are told by their own protocol.
        let boot_clock_port = 0x3e0;
        Ok(VmConfig {
            vcpus: count,
            memory_mib,
            kernel,
            initramfs,
            command_line,
            boot_clock_port,
            kvm_stats: false,
        })
    }

    /// Adds kernel parameters behind the machine's own; the kernel lets the last one win.
    ///
    /// # Errors
    /// [`ConfigError::CommandLineTooLong`], [`ConfigError::CommandLineText`].
    pub fn with_command_line(mut self, extra: &str) -> Result<VmConfig, ConfigError> {
        if extra.len() > MAX_EXTRA_COMMAND_LINE {
            return Err(ConfigError::CommandLineTooLong(extra.len()));
        }
        let printable = extra.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if !printable || extra.split(' ').any(|word| word == "--") {
            return Err(ConfigError::CommandLineText);
        }
        self.command_line = extra.to_owned();
        Ok(self)
    }

    /// Puts the boot clock at another I/O port.
    pub fn with_boot_clock(mut self, port: u16) -> VmConfig {
        self.boot_clock_port = port;
        self
    }

    /// Has KVM's own count of exits reported, at the price of a descriptor for each vCPU.
    pub fn with_kvm_stats(mut self) -> VmConfig {
        self.kvm_stats = true;
        self
    }

    /// Processors, 1 to [`MAX_VCPUS`].
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// RAM in MiB, a multiple of [`MEMORY_UNIT_MIB`].
    pub fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    /// The kernel image.
    pub fn kernel(&self) -> &File {
        &self.kernel
    }

    /// The initramfs.
    pub fn initramfs(&self) -> &[u8] {
        &self.initramfs
    }

    /// Extra kernel parameters.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// I/O port of the boot clock.
    pub fn boot_clock_port(&self) -> u16 {
        self.boot_clock_port
    }

    /// Whether KVM's own count of exits is wanted.
    pub fn kvm_stats(&self) -> bool {
        self.kvm_stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vcpus: u32, memory: u32, initramfs: usize) -> Result<VmConfig, ConfigError> {
        VmConfig::new(
            vcpus,
            memory,
            File::open("/dev/null").unwrap(),
            vec![0; initramfs],
        )
    }

    #[test]
    fn ranges_are_enforced() {
        assert!(config(1, 128, 1).is_ok());
        assert!(config(32, MAX_MEMORY_MIB, MAX_INITRAMFS).is_ok());
        for vcpus in [0, 33, 256, 257, u32::MAX] {
            assert_eq!(config(vcpus, 128, 1).unwrap_err(), ConfigError::Vcpus(vcpus));
        }
        for memory in [0, 64, 127, 129, 200, MAX_MEMORY_MIB + 128, u32::MAX] {
            assert_eq!(config(1, memory, 1).unwrap_err(), ConfigError::Memory(memory));
        }
        assert_eq!(config(1, 128, 0).unwrap_err(), ConfigError::Initramfs(0));
        assert!(matches!(
            config(1, 128, MAX_INITRAMFS + 1),
            Err(ConfigError::Initramfs(_))
        ));
    }

    #[test]
    fn command_line_takes_parameters_and_nothing_else() {
        let with = |text: &str| config(1, 128, 1).unwrap().with_command_line(text).map(|_| ());
        assert_eq!(with("loglevel=7 ip=none"), Ok(()));
        assert_eq!(with("a=b -- c"), Err(ConfigError::CommandLineText));
        assert_eq!(with("a\nb"), Err(ConfigError::CommandLineText));
        assert_eq!(with("a=\u{e9}"), Err(ConfigError::CommandLineText));
        assert_eq!(
            with(&"x".repeat(1025)),
            Err(ConfigError::CommandLineTooLong(1025))
        );
    }
}
