//! What lies in a guest's memory before its first instruction, by the 64-bit boot protocol (kernel
//! `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"): no real mode, no firmware, nothing
//! compressed.

pub mod cmdline;
pub mod initramfs;
pub mod kernel;
pub mod mptable;
pub mod params;
pub mod tables;
