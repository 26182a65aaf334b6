//! The few calls to KVM that its crate leaves unsafe or leaves out, each behind a safe function.
#![expect(
    unsafe_code,
    reason = "descriptors, memory slots and unions of the KVM interface"
)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl;

use crate::devices::virtio::GuestMemory;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Takes an opened `/dev/kvm`.
pub fn from_file(file: File) -> Kvm {
    // SAFETY: from_raw_fd demands an open descriptor that nobody else owns: `into_raw_fd` gives up this
    // one's ownership. Whether it is KVM is seen by the first ioctl, which fails on any other file.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

/// Makes guest memory the VM's RAM. The caller keeps a clone of `memory` for as long as `vm` lives.
///
/// # Errors
/// What KVM answers: too many slots, or ranges that overlap.
pub fn add_ram(vm: &VmFd, memory: &GuestMemory) -> Result<(), errno::Error> {
    for (slot, region) in memory.iter().enumerate() {
        let slot = u32::try_from(slot).expect("two regions at the most");
        let (guest_phys_addr, memory_size) = (region.start_addr().0, region.len());
        let userspace_addr = region.as_ptr() as u64;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the caller must name memory that stays mapped while the VM uses it: the mapping lives as
        // long as `memory`, of which `Machine` and `RunningVm` keep a clone beside the VM's descriptor,
        // dropped after it. The host accesses it only through vm-memory's volatile operations.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}

/// A descriptor for the vCPU's binary statistics (`KVM_GET_STATS_FD`, Linux 5.14).
///
/// # Errors
/// When this KVM has none.
pub fn stats_fd(vcpu: &VcpuFd) -> io::Result<File> {
    // SAFETY: KVM_GET_STATS_FD takes no argument, and the descriptor is a vCPU's.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl has just made this descriptor, so nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// What `KVM_EXIT_INTERNAL_ERROR` tells: the suberror.
pub fn internal_suberror(run: &kvm_run) -> u32 {
    // SAFETY: every field of the union is plain integers, so that any bytes are a valid value; after that
    // exit KVM has filled this one.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}
