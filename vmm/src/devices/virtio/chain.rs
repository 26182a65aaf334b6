//! The one checked gateway to guest buffers (VIRTIO 1.2, 2.7 "Split Virtqueues").
//!
//! A [`Chain`] is made once from a descriptor chain: every range is seen to lie in guest memory, readable
//! parts to come before writable ones (2.7.4.2), both totals to stay within the device's limit, and the
//! walk to end. Descriptors are read once; what the guest does to its table afterwards has no effect.
//! The *contents* of the buffers stay under the guest's hand, so a header is copied once and the copy is
//! what gets checked and used.
//!
//! A device reads the readable part front to back and writes the writable part front to back, or at an
//! offset when the header of an answer is known last.

use virtio_queue::DescriptorChain;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice,
};

use super::GuestMemory;

/// Most descriptors of one chain, indirect ones included. Linux's longest are those of its file and block
/// drivers, bounded by the queue size; no device here has a queue longer than this.
pub const MAX_DESCRIPTORS: usize = 1024;

/// Most bytes that a device takes in one chain, each way. A constant of each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLimit {
    /// Bytes from driver to device.
    pub readable: usize,
    /// Bytes from device to driver.
    pub writable: usize,
}

/// What is wrong with a chain, or with a use of it.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor names memory that the guest does not have.
    #[error("descriptor names {len} bytes at guest address {addr:#x}, outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        addr: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A device-readable descriptor follows a device-writable one (2.7.4.2 forbids it).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// More bytes, or more descriptors, than the device takes.
    #[error("chain of {len} {unit}, more than the limit of {limit}")]
    TooLong {
        /// What was found, up to and including the offending descriptor.
        len: usize,
        /// What was allowed.
        limit: usize,
        /// `"readable bytes"`, `"writable bytes"` or `"descriptors"`.
        unit: &'static str,
    },
    /// The chain does not end, leaves its table, or nests indirect tables.
    #[error("descriptor chain is malformed")]
    Malformed(#[source] virtio_queue::Error),
    /// The device wants more bytes than the chain has.
    #[error("chain too short: {wanted} bytes wanted, {left} left")]
    Short {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// A copy to or from guest memory failed.
    #[error("cannot access guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// A checked descriptor chain with a read and a write cursor.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Spans,
    writable: Spans,
    read: usize,
    written: usize,
}

impl Chain {
    /// Walks and checks a chain.
    ///
    /// # Errors
    /// What is wrong with it; the device then returns the head unused or resets the session.
    pub fn check(chain: DescriptorChain<&GuestMemory>, limit: &ChainLimit) -> Result<Chain, ChainError> {
        let (head, memory) = (chain.head_index(), chain.memory());
        let (mut readable, mut writable) = (Spans::default(), Spans::default());
        // `DescriptorChain` ends early on an error, with no word of it: an honest chain's last
        // descriptor is one without a successor.
        let mut ended = false;
        for (count, descriptor) in chain.clone().enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong {
                    len: count + 1,
                    limit: MAX_DESCRIPTORS,
                    unit: "descriptors",
                });
            }
            ended = !descriptor.has_next();
            let (addr, len) = (descriptor.addr(), descriptor.len() as usize);
            if descriptor.is_write_only() {
                writable.add(addr, len, limit.writable, "writable bytes")?;
            } else if writable.list.is_empty() {
                readable.add(addr, len, limit.readable, "readable bytes")?;
            } else {
                return Err(ChainError::ReadableAfterWritable);
            }
            if len > 0 && !memory.check_range(addr, len, Permissions::ReadWrite) {
                return Err(ChainError::OutsideMemory { addr: addr.0, len });
            }
        }
        if !ended {
            return Err(ChainError::Malformed(virtio_queue::Error::InvalidChain));
        }
        Ok(Chain {
            head,
            readable,
            writable,
            read: 0,
            written: 0,
        })
    }

    /// Index of the head descriptor: what goes into the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device has not read yet.
    pub fn readable_left(&self) -> usize {
        self.readable.len - self.read
    }

    /// Bytes that may still be written at the write cursor.
    pub fn writable_left(&self) -> usize {
        self.writable.len - self.written
    }

    /// Bytes of the whole writable part.
    pub fn writable_len(&self) -> usize {
        self.writable.len
    }

    /// Fills `out` from the read cursor.
    ///
    /// # Errors
    /// [`ChainError::Short`] when fewer bytes are left; nothing is read then.
    pub fn read_exact(&mut self, memory: &GuestMemory, out: &mut [u8]) -> Result<(), ChainError> {
        let mut done = 0;
        for (addr, len) in self.readable.pieces(self.read, out.len())? {
            memory
                .read_slice(&mut out[done..done + len], addr)
                .map_err(ChainError::Memory)?;
            done += len;
        }
        self.read += done;
        Ok(())
    }

    /// Reads one plain object from the read cursor.
    ///
    /// # Errors
    /// As [`Chain::read_exact`].
    pub fn read_obj<T: ByteValued + Default>(&mut self, memory: &GuestMemory) -> Result<T, ChainError> {
        let mut object = T::default();
        self.read_exact(memory, object.as_mut_slice())?;
        Ok(object)
    }

    /// Reads as much as there is, up to the length of `out`, and returns how much that was.
    ///
    /// # Errors
    /// [`ChainError::Memory`] only.
    pub fn read_up_to(&mut self, memory: &GuestMemory, out: &mut [u8]) -> Result<usize, ChainError> {
        let len = out.len().min(self.readable_left());
        self.read_exact(memory, &mut out[..len])?;
        Ok(len)
    }

    /// Moves the read cursor `len` bytes on.
    ///
    /// # Errors
    /// [`ChainError::Short`] when fewer are left.
    pub fn skip(&mut self, len: usize) -> Result<(), ChainError> {
        let left = self.readable_left();
        if len > left {
            return Err(ChainError::Short { wanted: len, left });
        }
        self.read += len;
        Ok(())
    }

    /// Writes all of `bytes` at the write cursor and moves it.
    ///
    /// # Errors
    /// [`ChainError::Short`] when they do not fit; nothing is written then.
    pub fn write_all(&mut self, memory: &GuestMemory, bytes: &[u8]) -> Result<(), ChainError> {
        self.write_at(memory, self.written, bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    /// Writes one plain object at the write cursor and moves it.
    ///
    /// # Errors
    /// As [`Chain::write_all`].
    pub fn write_obj<T: ByteValued>(&mut self, memory: &GuestMemory, object: T) -> Result<(), ChainError> {
        self.write_all(memory, object.as_slice())
    }

    /// Writes `bytes` at `offset` of the writable part. The cursor stays where it is.
    ///
    /// # Errors
    /// [`ChainError::Short`] when they do not fit; nothing is written then.
    pub fn write_at(&mut self, memory: &GuestMemory, offset: usize, bytes: &[u8]) -> Result<(), ChainError> {
        let mut done = 0;
        for (addr, len) in self.writable.pieces(offset, bytes.len())? {
            memory
                .write_slice(&bytes[done..done + len], addr)
                .map_err(ChainError::Memory)?;
            done += len;
        }
        Ok(())
    }

    /// Host views of the next `len` readable bytes, for calls like `writev` that take them straight to a
    /// file. Moves the read cursor. Never make a `&[u8]` of one: the guest may be writing it.
    ///
    /// # Errors
    /// [`ChainError::Short`] when fewer bytes are left.
    pub fn readable_slices<'m>(
        &mut self,
        memory: &'m GuestMemory,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m>>, ChainError> {
        let slices = self.readable.slices(memory, self.read, len, Permissions::Read)?;
        self.read += len;
        Ok(slices)
    }

    /// Host views of `len` writable bytes at `offset`, for calls like `readv`. Moves no cursor.
    ///
    /// # Errors
    /// [`ChainError::Short`] when the writable part ends before.
    pub fn writable_slices<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: usize,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m>>, ChainError> {
        self.writable.slices(memory, offset, len, Permissions::Write)
    }
}

/// Guest ranges that make up one direction of a chain, in order.
#[derive(Debug, Default)]
struct Spans {
    list: Vec<(GuestAddress, usize)>,
    len: usize,
}

impl Spans {
    fn add(
        &mut self,
        addr: GuestAddress,
        len: usize,
        limit: usize,
        unit: &'static str,
    ) -> Result<(), ChainError> {
        // No overflow: a length is a u32, and there are at most MAX_DESCRIPTORS of them.
        self.len += len;
        if self.len > limit {
            return Err(ChainError::TooLong {
                len: self.len,
                limit,
                unit,
            });
        }
        self.list.push((addr, len));
        Ok(())
    }

    /// The guest ranges that hold the `len` bytes from `offset`.
    fn pieces(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<impl Iterator<Item = (GuestAddress, usize)> + '_, ChainError> {
        let left = self.len.saturating_sub(offset);
        if len > left || offset > self.len {
            return Err(ChainError::Short { wanted: len, left });
        }
        let (mut skip, mut want) = (offset, len);
        Ok(self.list.iter().filter_map(move |&(addr, span)| {
            let begin = skip.min(span);
            skip -= begin;
            let take = want.min(span - begin);
            want -= take;
            // No overflow: the whole span was seen to lie in guest memory.
            (take > 0).then(|| (GuestAddress(addr.0 + begin as u64), take))
        }))
    }

    fn slices<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: usize,
        len: usize,
        access: Permissions,
    ) -> Result<Vec<VolatileSlice<'m>>, ChainError> {
        let mut slices = Vec::new();
        for (addr, len) in self.pieces(offset, len)? {
            // A range may cross from one memory region into the next.
            for slice in memory.get_slices(addr, len, access).map_err(ChainError::Memory)? {
                slices.push(slice.map_err(ChainError::Memory)?);
            }
        }
        Ok(slices)
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
