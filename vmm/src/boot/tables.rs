//! The GDT and the page tables that the boot CPU starts on. The kernel replaces both with its own within
//! its first instructions.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::devices::virtio::GuestMemory;
use crate::layout::{GDT, PAGE_TABLES};

/// Selectors that the boot protocol demands: `__BOOT_CS` and `__BOOT_DS`.
pub const BOOT_CS: u16 = 0x10;
/// See [`BOOT_CS`].
pub const BOOT_DS: u16 = 0x18;
/// A task state segment: VMX refuses to enter a guest without one.
pub const BOOT_TSS: u16 = 0x20;

/// Flat 64-bit code (L, P, execute/read), flat data (P, read/write) and a busy 64-bit TSS.
pub const GDT_ENTRIES: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
    0,
];

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Writes the GDT and an identity mapping of the first GiB in pages of 2 MiB. The protocol demands the
/// kernel, zero page and command line in it; kernels lie in the first GiB (checked when one is loaded).
///
/// # Errors
/// When guest memory is smaller than any VM's; a bug.
pub fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    for (i, entry) in GDT_ENTRIES.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(GDT.0 + 8 * i as u64))?;
    }
    let (pml4, pdpt, pd) = (PAGE_TABLES.0, PAGE_TABLES.0 + 0x1000, PAGE_TABLES.0 + 0x2000);
    memory.write_obj(pdpt | PRESENT | WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(pd | PRESENT | WRITABLE, GuestAddress(pdpt))?;
    for i in 0..512u64 {
        memory.write_obj((i << 21) | PRESENT | WRITABLE | LARGE, GuestAddress(pd + 8 * i))?;
    }
    Ok(())
}
