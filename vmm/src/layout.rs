//! Where things lie in the guest's physical address space, and why there.
//!
//! ```text
//!         0x500  GDT                     boot state, read once by the boot CPU's first instructions
//!        0x7000  zero page (boot_params)
//!        0x9000  page tables, 3 pages
//!       0x20000  command line
//!       0x9fc00  MP table (SMP)          the last KiB below 640 KiB, where kernels look for it
//!      0x100000  kernel                  1 MiB, or wherever the ELF file says
//!           ...  initramfs               page aligned, at the end of the memory below 3 GiB
//!    3 GiB       virtio-mmio slots, one page each
//!    4 GiB - ..  IOAPIC, local APIC, KVM's own pages
//!    4 GiB       the rest of the memory
//! ```

use vm_memory::GuestAddress;

/// 64-bit boot needs a GDT until the kernel loads its own. Above the interrupt vectors and BIOS data
/// area of the first 0x500 bytes, which kernels scan on some paths.
pub const GDT: GuestAddress = GuestAddress(0x500);

/// The zero page (`struct boot_params`, 4 KiB; kernel `Documentation/arch/x86/zero-page.rst`).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);

/// Page map level 4, page directory pointer table and page directory, in consecutive pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);

/// The command line, up to [`COMMAND_LINE_SIZE`] bytes with its NUL.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);

/// What an x86 kernel keeps of a command line, NUL included (kernel `arch/x86/include/asm/setup.h`).
pub const COMMAND_LINE_SIZE: usize = 2048;

/// End of conventional memory in the E820 map: 640 KiB less the last KiB, as on a PC with an EBDA.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;

/// The MP floating pointer and configuration table: the last KiB of conventional memory is the second
/// place that `mpparse.c` looks at. 1 KiB holds 32 processors (`boot/mptable.rs` tests it).
pub const MP_TABLE: GuestAddress = GuestAddress(LOW_MEMORY_END);

/// Room for the MP table.
pub const MP_TABLE_SIZE: usize = 0x400;

/// Kernels lie here or above: below are the 384 KiB that PCs keep for video and BIOS.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// RAM is split here. 3 GiB is a multiple of the guest kernel's section size (128 MiB), leaves 1 GiB of
/// addresses for devices, and lies below the APICs.
pub const MMIO_GAP_START: u64 = 3 << 30;

/// RAM goes on here: the APICs and KVM's pages lie right below 4 GiB.
pub const MMIO_GAP_END: u64 = 4 << 30;

/// First virtio-mmio slot.
pub const MMIO_BASE: u64 = MMIO_GAP_START;

/// A slot has a page to itself, so that each can be mapped alone. 0x200 bytes of it are used.
pub const MMIO_SLOT_SIZE: u64 = 0x1000;

/// The IOAPIC that KVM emulates (`KVM_CREATE_IRQCHIP`), fixed.
pub const IOAPIC: u32 = 0xfec0_0000;

/// The local APICs, fixed by the architecture at reset.
pub const LAPIC: u32 = 0xfee0_0000;

/// One page for `KVM_SET_IDENTITY_MAP_ADDR` and three for `KVM_SET_TSS_ADDR`: VMX needs them to run
/// application processors in real mode. Below the place where a PC has its BIOS.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u8 = 24;

/// Interrupt of the serial port, as on a PC.
pub const SERIAL_IRQ: u32 = 4;

/// First interrupt of the virtio-mmio slots; 3 and 4 are serial ports, 0 to 2 timer, keyboard, cascade.
pub const FIRST_SLOT_IRQ: u32 = 5;

/// Slots: one interrupt each, up to the last pin.
pub const SLOTS: usize = IOAPIC_PINS as usize - FIRST_SLOT_IRQ as usize;

/// First port of COM1.
pub const SERIAL_PORT: u16 = 0x3f8;

/// Address of slot `index`.
pub fn slot_address(index: usize) -> u64 {
    MMIO_BASE + index as u64 * MMIO_SLOT_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        const PAGE: u64 = 0x1000;
        const { assert!(GDT.0 + 6 * 8 <= ZERO_PAGE.0) };
        const { assert!(ZERO_PAGE.0 + PAGE <= PAGE_TABLES.0) };
        const { assert!(PAGE_TABLES.0 + 3 * PAGE <= COMMAND_LINE.0) };
        const { assert!(COMMAND_LINE.0 + COMMAND_LINE_SIZE as u64 <= LOW_MEMORY_END) };
        assert_eq!(MP_TABLE.0 + MP_TABLE_SIZE as u64, 640 << 10);
        assert!(slot_address(SLOTS) <= u64::from(IOAPIC));
        const { assert!(KVM_IDENTITY_MAP + PAGE <= KVM_TSS) };
        const { assert!(KVM_TSS + 3 * PAGE <= MMIO_GAP_END) };
    }

    #[test]
    fn split_of_memory_lies_on_section_borders() {
        for border in [MMIO_GAP_START, MMIO_GAP_END] {
            assert_eq!(border % (128 << 20), 0);
        }
    }
}
