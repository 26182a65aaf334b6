//! The zero page (kernel `Documentation/arch/x86/zero-page.rst`): where RAM, initramfs and command line
//! are.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryError};

use crate::devices::virtio::GuestMemory;
use crate::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_MEMORY_START, LOW_MEMORY_END, MMIO_GAP_START, ZERO_PAGE,
};
use crate::memory;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Protocol 2.15; what a loader of its age would see in a bzImage's header.
const PROTOCOL_VERSION: u16 = 0x020f;
/// "Undefined" boot loader: none of the registered ids is ours.
const LOADER_UNDEFINED: u8 = 0xff;
const PAGE: u64 = 0x1000;

/// Why the guest's memory cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// Kernel and initramfs do not both fit.
    #[error("initramfs of {len} bytes does not fit behind the kernel's end at {kernel_end:#x}")]
    NoRoom {
        /// Bytes of the initramfs.
        len: usize,
        /// End of the kernel.
        kernel_end: u64,
    },
    /// Guest memory cannot take it; a bug.
    #[error("cannot write the boot parameters")]
    Write(#[source] GuestMemoryError),
}

/// A guest kernel keeps 64 bytes for each page of 4 KiB, and fills them all in as it boots.
const MEMORY_PER_PAGE_STRUCTS: u64 = 4096 / 64;
/// Besides, it takes its hash tables and per-CPU areas from the top of memory.
const OTHER_EARLY: u64 = 2 << 20;

/// Tells the host which memory the guest's kernel takes and fills as it boots: from the top downwards.
pub fn expect_early_allocations(memory: &GuestMemory, initramfs_len: usize) {
    let size = memory::size(memory);
    let taken = size / MEMORY_PER_PAGE_STRUCTS + OTHER_EARLY;
    let top = memory.last_addr().0 + 1;
    memory::expect_dense(memory, top.saturating_sub(taken) & !(memory::HUGE_PAGE - 1)..top);
    let low_end = size.min(MMIO_GAP_START);
    memory::expect_dense(memory, low_end.saturating_sub(initramfs_len as u64)..low_end);
}

/// Puts the initramfs at the end of the RAM below the gap, where the kernel needs not move it away.
///
/// # Errors
/// [`ParamsError::NoRoom`] when the kernel is in its way.
pub fn place_initramfs(
    memory: &GuestMemory,
    kernel_end: u64,
    initramfs: &[u8],
) -> Result<GuestAddress, ParamsError> {
    let low_end = memory::size(memory).min(MMIO_GAP_START);
    let no_room = ParamsError::NoRoom {
        len: initramfs.len(),
        kernel_end,
    };
    let start = low_end
        .checked_sub(initramfs.len() as u64)
        .map(|start| start & !(PAGE - 1));
    let start = start.filter(|&start| start >= kernel_end).ok_or(no_room)?;
    memory
        .write_slice(initramfs, GuestAddress(start))
        .map_err(ParamsError::Write)?;
    Ok(GuestAddress(start))
}

/// Writes the zero page.
///
/// # Errors
/// [`ParamsError::Write`]; a bug.
pub fn write(memory: &GuestMemory, initramfs: (GuestAddress, usize)) -> Result<(), ParamsError> {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = low(COMMAND_LINE.0);
    params.hdr.cmdline_size = low(COMMAND_LINE_SIZE as u64 - 1);
    params.hdr.ramdisk_image = low(initramfs.0.0);
    params.hdr.ramdisk_size = low(initramfs.1 as u64);
    let map = e820(memory);
    params.e820_table[..map.len()].copy_from_slice(&map);
    params.e820_entries = u8::try_from(map.len()).expect("four entries at the most");
    memory.write_obj(params, ZERO_PAGE).map_err(ParamsError::Write)
}

/// RAM as the guest shall use it: around the MP table and the PC's hole, and around the MMIO gap.
fn e820(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let size = memory::size(memory);
    let mut map = vec![
        entry(0, LOW_MEMORY_END, E820_RAM),
        entry(LOW_MEMORY_END, HIGH_MEMORY_START, E820_RESERVED),
        entry(HIGH_MEMORY_START, size.min(MMIO_GAP_START), E820_RAM),
    ];
    let mebibytes = u32::try_from(size >> 20).expect("1 TiB at the most");
    map.extend(
        memory::ram_ranges(mebibytes)
            .iter()
            .skip(1)
            .map(|range| entry(range.start, range.end, E820_RAM)),
    );
    map
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("boot structures lie below the MMIO gap")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(memory_mib: u32) -> Vec<(u64, u64, u32)> {
        let memory = memory::map(memory_mib).unwrap();
        e820(&memory)
            .iter()
            .map(|e| (e.addr, e.addr + e.size, e.r#type))
            .collect()
    }

    #[test]
    fn e820_names_all_ram_but_the_holes() {
        let small = map(128);
        assert_eq!(
            small,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0x10_0000, 2),
                (0x10_0000, 128 << 20, 1)
            ]
        );
        let large = map(4096);
        assert_eq!(large[2], (0x10_0000, 3 << 30, 1));
        assert_eq!(large[3], (4 << 30, 5 << 30, 1));
    }

    #[test]
    fn zero_page_leads_to_initramfs_and_command_line() {
        let memory = memory::map(128).unwrap();
        let content = vec![0x5a; 5000];
        let at = place_initramfs(&memory, 0x200_0000, &content).unwrap();
        assert_eq!(at.0, (128 << 20) - 8192);
        write(&memory, (at, content.len())).unwrap();
        let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
        let header = params.hdr;
        assert_eq!({ header.ramdisk_image }, (128 << 20) - 8192);
        assert_eq!({ header.ramdisk_size }, 5000);
        assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
        assert_eq!({ header.header }, 0x5372_6448);
        assert_eq!(params.e820_entries, 3);
    }

    #[test]
    fn initramfs_never_lies_over_the_kernel() {
        let memory = memory::map(128).unwrap();
        let content = vec![0; 4 << 20];
        assert!(place_initramfs(&memory, 124 << 20, &content).is_ok());
        assert!(matches!(
            place_initramfs(&memory, (124 << 20) + 1, &content),
            Err(ParamsError::NoRoom { .. })
        ));
    }
}
