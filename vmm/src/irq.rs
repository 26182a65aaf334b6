//! Interrupt lines: an eventfd that KVM injects from (irqfd), one for each pin of the IOAPIC in use.

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a line cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No eventfd.
    #[error("cannot make an eventfd for interrupt {pin}")]
    EventFd {
        /// Pin of the IOAPIC.
        pin: u32,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// KVM refuses it.
    #[error("cannot connect interrupt {pin} (KVM_IRQFD)")]
    Connect {
        /// Pin of the IOAPIC.
        pin: u32,
        /// KVM's answer.
        #[source]
        source: vmm_sys_util::errno::Error,
    },
}

/// Connects a new eventfd to `pin`. Each write to it is one edge.
///
/// # Errors
/// See [`IrqError`].
pub fn line(vm: &VmFd, pin: u32) -> Result<EventFd, IrqError> {
    let line =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| IrqError::EventFd { pin, source })?;
    vm.register_irqfd(&line, pin)
        .map_err(|source| IrqError::Connect { pin, source })?;
    Ok(line)
}
