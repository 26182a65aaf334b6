//! Counts of a vCPU: exits that reached the VMM, by kind, and KVM's own count of all exits (KVM API 4.133
//! "KVM_GET_STATS_FD").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Exits to the VMM since the start, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// Port reads.
    pub io_in: u64,
    /// Port writes.
    pub io_out: u64,
    /// Reads of device registers.
    pub mmio_read: u64,
    /// Writes of device registers; queue kicks go by ioeventfd and are not among them.
    pub mmio_write: u64,
    /// Kicked by a signal.
    pub interrupted: u64,
    /// Anything else.
    pub other: u64,
}

impl ExitCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.io_in + self.io_out + self.mmio_read + self.mmio_write + self.interrupted + self.other
    }
}

impl std::ops::Add for ExitCounts {
    type Output = ExitCounts;

    fn add(self, other: ExitCounts) -> ExitCounts {
        ExitCounts {
            io_in: self.io_in + other.io_in,
            io_out: self.io_out + other.io_out,
            mmio_read: self.mmio_read + other.mmio_read,
            mmio_write: self.mmio_write + other.mmio_write,
            interrupted: self.interrupted + other.interrupted,
            other: self.other + other.other,
        }
    }
}

/// The kinds of [`ExitCounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// See [`ExitCounts::io_in`].
    IoIn,
    /// See [`ExitCounts::io_out`].
    IoOut,
    /// See [`ExitCounts::mmio_read`].
    MmioRead,
    /// See [`ExitCounts::mmio_write`].
    MmioWrite,
    /// See [`ExitCounts::interrupted`].
    Interrupted,
    /// See [`ExitCounts::other`].
    Other,
}

/// Counters that one vCPU thread writes and others read.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; 6]);

impl Counters {
    /// Counts one exit.
    pub fn count(&self, kind: ExitKind) {
        // Statistics order nothing.
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> ExitCounts {
        let get = |kind: ExitKind| self.0[kind as usize].load(Ordering::Relaxed);
        ExitCounts {
            io_in: get(ExitKind::IoIn),
            io_out: get(ExitKind::IoOut),
            mmio_read: get(ExitKind::MmioRead),
            mmio_write: get(ExitKind::MmioWrite),
            interrupted: get(ExitKind::Interrupted),
            other: get(ExitKind::Other),
        }
    }
}

/// Length of `struct kvm_stats_header`, and of `struct kvm_stats_desc` without its name.
const HEADER_LEN: usize = 24;
const DESCRIPTOR_LEN: usize = 16;
/// More statistics, or longer names, than any kernel has: the file is not what it should be.
const MAX_STATISTICS: usize = 4096;
const MAX_NAME: usize = 256;

/// Reads one statistic by name; `None` when this kernel has none of that name.
///
/// # Errors
/// When the file cannot be read.
pub fn statistic(file: &File, name: &str) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    let field = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
    };
    let (name_size, count) = (field(&header, 4), field(&header, 8));
    let (descriptors, data) = (field(&header, 16), field(&header, 20));
    if count > MAX_STATISTICS || name_size > MAX_NAME {
        return Ok(None);
    }
    let stride = DESCRIPTOR_LEN + name_size;
    let mut table = vec![0; count * stride];
    file.read_exact_at(&mut table, descriptors as u64)?;
    let wanted = table.chunks_exact(stride).find(|descriptor| {
        let bytes = &descriptor[DESCRIPTOR_LEN..];
        bytes.split(|byte| *byte == 0).next() == Some(name.as_bytes())
    });
    let Some(descriptor) = wanted else { return Ok(None) };
    let mut value = [0; 8];
    file.read_exact_at(&mut value, (data + field(descriptor, 8)) as u64)?;
    Ok(Some(u64::from_le_bytes(value)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn statistic_is_found_by_name() {
        // Header; two descriptors with names of 8 bytes; two values.
        let mut bytes = Vec::new();
        for word in [0u32, 8, 2, 24, 24, 72] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for (name, offset) in [(b"halts\0\0\0", 0u32), (b"exits\0\0\0", 8)] {
            for word in [0u32, 0x1_0000, offset, 0] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(name);
        }
        for value in [7u64, 2129] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        assert_eq!(statistic(&file, "exits").unwrap(), Some(2129));
        assert_eq!(statistic(&file, "halts").unwrap(), Some(7));
        assert_eq!(statistic(&file, "exit").unwrap(), None);
    }

    #[test]
    fn kinds_are_counted_apart() {
        let counters = Counters::default();
        counters.count(ExitKind::IoOut);
        counters.count(ExitKind::IoOut);
        counters.count(ExitKind::Other);
        let counts = counters.read()
            + ExitCounts {
                io_out: 1,
                ..Default::default()
            };
        assert_eq!(
            counts,
            ExitCounts {
                io_out: 3,
                other: 1,
                ..Default::default()
            }
        );
        assert_eq!(counts.total(), 4);
    }
}
