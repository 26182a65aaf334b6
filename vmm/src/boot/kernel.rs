//! Puts an uncompressed ELF64 kernel into guest memory.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::loader::{Elf, Error as LoaderError, KernelLoader};
use vm_memory::GuestAddress;

use crate::devices::virtio::GuestMemory;
use crate::layout::HIGH_MEMORY_START;
use crate::memory;

/// The identity mapping that a kernel starts on covers this much (`boot/tables.rs`).
const MAPPED_AT_START: u64 = 1 << 30;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an ELF64 image, damaged, or larger than memory.
    #[error("cannot load the kernel: not an uncompressed x86-64 vmlinux, or larger than the guest's memory")]
    Load(#[source] LoaderError),
    /// Entered or ends outside what is mapped when it starts.
    #[error("kernel at {entry:#x} to {end:#x} lies outside {HIGH_MEMORY_START:#x} to {MAPPED_AT_START:#x}")]
    Place {
        /// Entry address.
        entry: u64,
        /// First address behind it.
        end: u64,
    },
    /// The file cannot be duplicated.
    #[error("cannot read the kernel file")]
    File(#[source] std::io::Error),
}

/// A kernel in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Where the boot CPU starts.
    pub entry: GuestAddress,
    /// First address behind the kernel, its zeroed part included.
    pub end: u64,
}

/// Loads `image`; its file position moves.
///
/// # Errors
/// See [`KernelError`].
pub fn load(memory: &GuestMemory, image: &File) -> Result<Kernel, KernelError> {
    for segment in segments(image) {
        memory::expect_dense(memory, segment);
    }
    let mut image = image.try_clone().map_err(KernelError::File)?;
    let floor = Some(GuestAddress(HIGH_MEMORY_START));
    let loaded = Elf::load(memory, None, &mut image, floor).map_err(KernelError::Load)?;
    let (entry, end) = (loaded.kernel_load, loaded.kernel_end);
    if !(HIGH_MEMORY_START..MAPPED_AT_START.min(end)).contains(&entry.0) || end > MAPPED_AT_START {
        return Err(KernelError::Place { entry: entry.0, end });
    }
    Ok(Kernel { entry, end })
}

/// Length of an ELF64 header and of a program header.
const ELF_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// Program headers looked at; kernels have about ten.
const MAX_SEGMENTS: u16 = 32;
const PT_LOAD: u32 = 1;

/// Physical ranges of the image's segments. Only a hint is made of them; the loader does the checking.
fn segments(image: &File) -> Vec<Range<u64>> {
    let word = |bytes: &[u8], at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let mut header = [0; ELF_HEADER_LEN];
    if image.read_exact_at(&mut header, 0).is_err() {
        return Vec::new();
    }
    let (offset, count) = (
        word(&header, 0x20),
        u16::from_le_bytes([header[0x38], header[0x39]]),
    );
    let mut table = vec![0; PROGRAM_HEADER_LEN * usize::from(count.min(MAX_SEGMENTS))];
    if image.read_exact_at(&mut table, offset).is_err() {
        return Vec::new();
    }
    table
        .chunks_exact(PROGRAM_HEADER_LEN)
        .filter(|segment| segment.starts_with(&PT_LOAD.to_le_bytes()))
        .map(|segment| (word(segment, 0x18), word(segment, 0x28)))
        .map(|(start, len)| start..start.saturating_add(len))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;
    use crate::devices::virtio::test_driver::test_memory;

    /// An ELF64 file with one segment, as small as can be.
    fn elf(entry: u64, paddr: u64, content: &[u8], memsz: u64) -> File {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
        for field in [entry, 64, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
        for field in [120, paddr, paddr, content.len() as u64, memsz, 0x1000] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(content);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn segments_go_where_they_say() {
        let memory = test_memory(32 << 20);
        let kernel = load(&memory, &elf(0x100_0000, 0x100_0000, b"\xf4code", 0x2000)).unwrap();
        assert_eq!(
            kernel,
            Kernel {
                entry: GuestAddress(0x100_0000),
                end: 0x100_2000
            }
        );
        let mut seen = [0; 5];
        memory.read_slice(&mut seen, kernel.entry).unwrap();
        assert_eq!(&seen, b"\xf4code");
    }

    #[test]
    fn segments_are_found_for_the_hint() {
        let file = elf(0x100_0000, 0x100_0000, b"\xf4code", 0x60_0000);
        assert_eq!(segments(&file), vec![0x100_0000..0x160_0000; 1]);
        assert!(segments(&File::open("/dev/null").unwrap()).is_empty());
    }

    #[test]
    fn other_files_and_places_are_refused() {
        let memory = test_memory(32 << 20);
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 4096]).unwrap();
        assert!(matches!(load(&memory, &text), Err(KernelError::Load(_))));
        assert!(matches!(
            load(&memory, &File::open("/dev/null").unwrap()),
            Err(KernelError::Load(_))
        ));
        // Behind the end of memory; below 1 MiB; entered behind its own end.
        assert!(load(&memory, &elf(0x400_0000, 0x400_0000, b"x", 1)).is_err());
        assert!(load(&memory, &elf(0x8000, 0x8000, b"x", 1)).is_err());
        let outside = load(&memory, &elf(0x200_0000, 0x100_0000, b"x", 1));
        assert!(matches!(outside, Err(KernelError::Place { .. })));
        let huge = load(&memory, &elf(0x100_0000, 0x100_0000, b"x", 1 << 40));
        assert!(matches!(huge, Err(KernelError::Place { .. })));
    }
}
