//! The guest's RAM: private anonymous memory that the host fills in as the guest touches it.
//!
//! No huge pages are asked for in general: a VM that starts and ends within a second would pay for zeroing
//! memory that it never uses. The exception is what a kernel fills to the last page as it boots
//! ([`expect_dense`]): there, one fault of 2 MiB stands for 512, on the host and in the guest. The mapping is kept apart from the VMM's own (`MAP_NORESERVE` and
//! `MADV_DONTDUMP` keep the host kernel from merging it with a neighbour, and it gets a name where the
//! host can give one), so that figures can tell guest RAM from VMM overhead.
#![expect(unsafe_code, reason = "madvise and prctl on the mapping that this file makes")]

use std::io;
use std::ops::Range;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

use crate::devices::virtio::GuestMemory;
use crate::layout::{MMIO_GAP_END, MMIO_GAP_START};

/// Name of the mapping in `/proc/PID/maps`: `[anon:moat-guest-ram]`, from Linux 5.17 on where it is configured.
const MAPPING_NAME: &std::ffi::CStr = c"moat-guest-ram";

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refuses the mapping.
    #[error("cannot map {len} bytes of guest memory")]
    Map {
        /// Bytes asked for.
        len: usize,
        /// The host's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The address ranges do not fit together; a bug.
    #[error("cannot lay out guest memory")]
    Layout(#[source] GuestRegionCollectionError),
    /// The host cannot keep RAM out of core dumps and forks.
    #[error("cannot set up guest memory")]
    Advise(#[source] io::Error),
}

/// Where `memory_mib` MiB of RAM lie: below the MMIO gap, and what is left above it.
pub fn ram_ranges(memory_mib: u32) -> Vec<Range<u64>> {
    let size = u64::from(memory_mib) << 20;
    let low = size.min(MMIO_GAP_START);
    let high = MMIO_GAP_END..MMIO_GAP_END + (size - low);
    [0..low, high]
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect()
}

/// Maps the RAM of a VM.
///
/// # Errors
/// When the host has no room for it in its address space or limits.
pub fn map(memory_mib: u32) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::new();
    for range in ram_ranges(memory_mib) {
        let len = usize::try_from(range.end - range.start).expect("usize has 64 bits here");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let region = MmapRegion::build(None, len, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|source| MemoryError::Map { len, source })?;
        set_apart(&region).map_err(MemoryError::Advise)?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start)).expect("ranges end below 2 TiB");
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

/// Host address ranges of the RAM, for whoever reads `/proc/self/smaps`.
pub fn host_ranges(memory: &GuestMemory) -> Vec<Range<usize>> {
    memory
        .iter()
        .map(|region| {
            let start = region.as_ptr() as usize;
            start..start + region.size()
        })
        .collect()
}

/// Bytes of RAM.
pub fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Size and alignment of a huge page.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Asks for huge pages for the blocks of 2 MiB that lie whole in `range`, before anything touches them.
///
/// A hint: it has no effect where the host gives no huge pages, or where the mapping is not aligned to
/// 2 MiB (Linux before 6.7 does not see to that).
pub fn expect_dense(memory: &GuestMemory, range: Range<u64>) {
    for region in memory.iter() {
        let start = range.start.next_multiple_of(HUGE_PAGE).max(region.start_addr().0);
        let end = (range.end & !(HUGE_PAGE - 1)).min(region.start_addr().0 + region.len());
        let Some(len) = end
            .checked_sub(start)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| *len > 0)
        else {
            continue;
        };
        let Ok(slice) = region.get_slice(MemoryRegionAddress(start - region.start_addr().0), len) else {
            continue;
        };
        // SAFETY: madvise demands a page-aligned range: regions and both ends are aligned. It is mapped,
        // for `get_slice` has checked it against the region, which `memory` keeps. The advice changes
        // how pages are made, not what is in them. Hosts without huge pages answer EINVAL: no loss.
        unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
}

fn set_apart(region: &MmapRegion<()>) -> io::Result<()> {
    let start = region.as_ptr().cast::<libc::c_void>();
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: madvise demands a page-aligned range; this one was returned by mmap with that length,
        // and `region` keeps it mapped. Neither advice changes what the process itself reads there.
        let result = unsafe { libc::madvise(start, region.size(), advice) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: PR_SET_VMA_ANON_NAME demands a mapped range and a NUL-terminated name that lives through
    // the call: both hold. It only labels the mapping. Kernels without it answer EINVAL, which is as good.
    unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            start,
            region.size(),
            MAPPING_NAME.as_ptr(),
        )
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_is_split_around_the_gap() {
        const GIB: u64 = 1 << 30;
        let ranges = |mib| {
            ram_ranges(mib)
                .iter()
                .map(|range| (range.start, range.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(128), [(0, 128 << 20)]);
        assert_eq!(ranges(3072), [(0, 3 * GIB)]);
        assert_eq!(ranges(3200), [(0, 3 * GIB), (4 * GIB, 4 * GIB + (128 << 20))]);
        assert_eq!(ranges(4096), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn all_of_it_is_there_and_zero_and_nothing_in_the_gap() {
        let memory = map(4096).unwrap();
        assert_eq!(size(&memory), 4 << 30);
        for addr in [0, (3 << 30) - 1, 4 << 30, (5 << 30) - 1] {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(addr)).unwrap(), 0);
        }
        assert!(memory.read_obj::<u8>(GuestAddress(3 << 30)).is_err());
        assert!(!memory.check_range(GuestAddress((3 << 30) - 1), 2));
    }

    #[test]
    fn hints_take_any_range() {
        let memory = map(3200).unwrap();
        for range in [
            0..u64::MAX,
            0..1,
            5..5,
            (3 << 30) - 1..(4 << 30) + 1,
            1 << 50..1 << 51,
            0x1234..0x50_0000,
        ] {
            expect_dense(&memory, range);
        }
        memory.write_obj(7u8, GuestAddress(2 << 20)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(2 << 20)).unwrap(), 7);
    }

    #[test]
    fn untouched_memory_costs_nothing_and_is_a_mapping_of_its_own() {
        let memory = map(256).unwrap();
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        let range = &host_ranges(&memory)[0];
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let head = format!("{:x}-{:x} ", range.start, range.end);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
        assert!(lines.next().is_some(), "no mapping {head}");
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
        // One page; or one huge page on a host that always uses them.
        assert!(kib <= 2048, "{kib} KiB");
    }
}
