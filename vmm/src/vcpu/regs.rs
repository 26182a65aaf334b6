//! Registers of the boot CPU at the kernel's 64-bit entry (kernel `Documentation/arch/x86/boot.rst`,
//! "64-bit Boot Protocol"): long mode, identity mapping, flat segments, interrupts off, RSI at the zero
//! page. Application processors stay as KVM resets them and wait for the kernel's INIT and SIPI.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestAddress;

use crate::boot::tables::{BOOT_CS, BOOT_DS, BOOT_TSS, GDT_ENTRIES};
use crate::layout::{GDT, PAGE_TABLES, ZERO_PAGE};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// General registers for a start at `entry`.
pub fn at_entry(entry: GuestAddress) -> kvm_regs {
    kvm_regs {
        rip: entry.0,
        rsi: ZERO_PAGE.0,
        rflags: RFLAGS,
        ..Default::default()
    }
}

/// Turns a vCPU's system registers as KVM resets them (`reset`) into those of long mode.
pub fn long_mode(reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = reset;
    sregs.cs = segment(BOOT_CS);
    let data = segment(BOOT_DS);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(BOOT_TSS);
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = u16::try_from(8 * GDT_ENTRIES.len() - 1).expect("six entries");
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    sregs
}

/// What the CPU would load from the GDT for `selector` (Intel SDM volume 3A, 3.4.5).
fn segment(selector: u16) -> kvm_segment {
    let entry = GDT_ENTRIES[usize::from(selector / 8)];
    let bits = |from: u32, count: u32| (entry >> from) & ((1 << count) - 1);
    let byte = |from, count| u8::try_from(bits(from, count)).expect("fields are 4 bits at the most");
    let granular = byte(55, 1);
    let limit = u32::try_from(bits(0, 16) | (bits(48, 4) << 16)).expect("20 bits");
    kvm_segment {
        base: bits(16, 24) | (bits(56, 8) << 24),
        limit: if granular == 1 {
            (limit << 12) | 0xfff
        } else {
            limit
        },
        selector,
        type_: byte(40, 4),
        s: byte(44, 1),
        dpl: byte(45, 2),
        present: byte(47, 1),
        avl: byte(52, 1),
        l: byte(53, 1),
        db: byte(54, 1),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat_64_bit_code_data_and_a_busy_task() {
        let sregs = long_mode(kvm_sregs::default());
        assert_eq!(
            (sregs.cs.limit, sregs.cs.l, sregs.cs.db, sregs.cs.type_),
            (u32::MAX, 1, 0, 0xb)
        );
        assert_eq!(
            (sregs.ds.limit, sregs.ds.l, sregs.ds.db, sregs.ds.type_),
            (u32::MAX, 0, 1, 3)
        );
        assert_eq!(
            (sregs.tr.limit, sregs.tr.s, sregs.tr.type_, sregs.tr.present),
            (0x67, 0, 0xb, 1)
        );
    }

    #[test]
    fn entry_is_as_the_boot_protocol_says() {
        let regs = at_entry(GuestAddress(0x100_0000));
        assert_eq!(
            (regs.rip, regs.rsi, regs.rflags & (1 << 9)),
            (0x100_0000, 0x7000, 0)
        );
        let sregs = long_mode(kvm_sregs::default());
        assert_eq!(
            (sregs.cs.selector, sregs.ds.selector, sregs.ss.selector),
            (0x10, 0x18, 0x18)
        );
        assert_ne!(sregs.cr0 & CR0_PG, 0);
        assert_ne!(sregs.efer & EFER_LMA, 0);
    }
}
