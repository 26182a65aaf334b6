//! What the guest sees besides memory and CPUs. Each device is one file, small enough to read at one
//! sitting; it knows registers, queues and bytes, and nothing of KVM or of threads.

pub mod boot_clock;
pub mod serial;
pub mod virtio;
