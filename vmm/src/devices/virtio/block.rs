//! A disk on a file (VIRTIO 1.2, 5.2 "Block Device"): read, write, flush and its id; read-only when
//! asked for. Requests are served one after the other on the thread of its event loop.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};

use super::chain::{Chain, ChainError, ChainLimit};
use super::{Activation, GuestMemory, VirtioDevice};

/// Device id, 5.2.1.
const VIRTIO_ID_BLOCK: u32 = 2;

const QUEUE_SIZES: [u16; 1] = [128];

/// Unit of addresses and of the capacity, 5.2.4.
const SECTOR: u64 = 512;

/// Segments of a request: with header and status they fill a chain of the queue's size.
const SEG_MAX: u32 = QUEUE_SIZES[0] as u32 - 2;

/// Type, priority, sector.
const HEADER_LEN: usize = 16;

/// Most data of one request. Linux makes segments of up to 64 KiB and requests of up to
/// `max_sectors_kb`, 1,280 KiB by default; a request beyond this gets an error.
const MAX_DATA: usize = 4 << 20;

const LIMIT: ChainLimit = ChainLimit {
    readable: HEADER_LEN + MAX_DATA,
    writable: MAX_DATA + 1,
};

/// Data is copied through a buffer of this size: a file's read or write per 64 KiB.
const PIECE: usize = 64 << 10;

/// How a disk is made.
#[derive(Debug)]
pub struct BlockConfig {
    /// The content; its length, in whole sectors, is the disk's.
    pub file: File,
    /// Writes are refused, and the driver is told.
    pub read_only: bool,
    /// What the guest sees as the serial number, cut at 20 bytes.
    pub id: String,
}

/// Why a disk cannot be made or a request cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file's length is not to be had.
    #[error("cannot tell the length of the disk's file")]
    Length(#[source] io::Error),
    /// The driver's buffers do not make a request.
    #[error("cannot use the driver's buffers")]
    Chain(#[source] ChainError),
    /// The file fails.
    #[error("cannot access the disk's file")]
    File(#[source] io::Error),
    /// Beyond the end, or not of whole sectors.
    #[error("{len} bytes at sector {sector} are not on the disk")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: usize,
    },
    /// A write to a disk that is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A request that was not offered.
    #[error("request of type {0} is not supported")]
    Unsupported(u32),
}

impl BlockError {
    fn status(&self) -> u8 {
        let status = match self {
            BlockError::Unsupported(_) => VIRTIO_BLK_S_UNSUPP,
            _ => VIRTIO_BLK_S_IOERR,
        };
        u8::try_from(status).expect("a status is one byte")
    }
}

/// What changes while the disk is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Requests served.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

/// The disk.
pub struct Block {
    config: BlockConfig,
    sectors: u64,
    state: BlockState,
    buffer: Vec<u8>,
    active: Option<Activation>,
}

impl Block {
    /// A disk that waits for its driver.
    ///
    /// # Errors
    /// [`BlockError::Length`].
    pub fn new(config: BlockConfig) -> Result<Block, BlockError> {
        let sectors = length(&config.file).map_err(BlockError::Length)? / SECTOR;
        Ok(Block {
            config,
            sectors,
            state: BlockState::default(),
            buffer: vec![0; PIECE],
            active: None,
        })
    }

    /// What changes while the disk is in use.
    pub fn state(&self) -> BlockState {
        self.state
    }

    fn serve(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        let (memory, queue) = (&active.memory, &mut active.queues[0]);
        while let Some(next) = queue.pop(memory, &LIMIT) {
            let (head, written) = match next {
                Ok(mut chain) => (chain.head(), self.answer(&mut chain, memory)),
                Err((head, _)) => {
                    self.state.errors += 1;
                    (head, 0)
                }
            };
            queue.push(memory, head, written);
        }
        queue.notify(memory);
        self.active = Some(active);
    }

    /// Serves one request and returns the bytes written to its buffers. The status is the last writable
    /// byte of the chain.
    fn answer(&mut self, chain: &mut Chain, memory: &GuestMemory) -> u32 {
        self.state.requests += 1;
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            // No room for a status: there is no way to answer.
            self.state.errors += 1;
            return 0;
        };
        let (status, written) = match self.request(chain, memory, data_len) {
            Ok(written) => (u8::try_from(VIRTIO_BLK_S_OK).expect("0"), written),
            Err(error) => {
                self.state.errors += 1;
                (error.status(), 0)
            }
        };
        match chain.write_at(memory, data_len, &[status]) {
            // The status counts as written, and so does all before it: drivers go by the status.
            Ok(()) => u32::try_from(written + 1).expect("bounded by LIMIT"),
            Err(_) => 0,
        }
    }

    fn request(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
        data_len: usize,
    ) -> Result<usize, BlockError> {
        // 5.2.6: type, reserved, sector; little endian.
        let mut header = [0; HEADER_LEN];
        chain.read_exact(memory, &mut header).map_err(BlockError::Chain)?;
        let [a, b, c, d, _, _, _, _, rest @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(rest));
        match kind {
            VIRTIO_BLK_T_IN => self.read(chain, memory, sector, data_len),
            VIRTIO_BLK_T_OUT => self.write(chain, memory, sector),
            VIRTIO_BLK_T_FLUSH if self.config.read_only => Ok(0),
            VIRTIO_BLK_T_FLUSH => self.config.file.sync_data().map(|()| 0).map_err(BlockError::File),
            VIRTIO_BLK_T_GET_ID => self.id(chain, memory, data_len),
            other => Err(BlockError::Unsupported(other)),
        }
    }

    fn read(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
        sector: u64,
        len: usize,
    ) -> Result<usize, BlockError> {
        let start = self.start(sector, len)?;
        for done in (0..len).step_by(PIECE) {
            let piece = &mut self.buffer[..PIECE.min(len - done)];
            self.config
                .file
                .read_exact_at(piece, start + done as u64)
                .map_err(BlockError::File)?;
            chain.write_all(memory, piece).map_err(BlockError::Chain)?;
        }
        Ok(len)
    }

    fn write(&mut self, chain: &mut Chain, memory: &GuestMemory, sector: u64) -> Result<usize, BlockError> {
        if self.config.read_only {
            return Err(BlockError::ReadOnly);
        }
        let len = chain.readable_left();
        let start = self.start(sector, len)?;
        for done in (0..len).step_by(PIECE) {
            let piece = &mut self.buffer[..PIECE.min(len - done)];
            chain.read_exact(memory, piece).map_err(BlockError::Chain)?;
            self.config
                .file
                .write_all_at(piece, start + done as u64)
                .map_err(BlockError::File)?;
        }
        Ok(0)
    }

    /// 5.2.6: 20 bytes, without a NUL when all are used.
    fn id(&self, chain: &mut Chain, memory: &GuestMemory, room: usize) -> Result<usize, BlockError> {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let bytes = self.config.id.as_bytes();
        let len = bytes.len().min(id.len());
        id[..len].copy_from_slice(&bytes[..len]);
        let id = &id[..room.min(id.len())];
        chain.write_all(memory, id).map_err(BlockError::Chain)?;
        Ok(id.len())
    }

    fn start(&self, sector: u64, len: usize) -> Result<u64, BlockError> {
        let sectors = len as u64 / SECTOR;
        let whole = (len as u64).is_multiple_of(SECTOR);
        let end = sector
            .checked_add(sectors)
            .filter(|end| whole && *end <= self.sectors);
        end.map(|_| sector * SECTOR)
            .ok_or(BlockError::Range { sector, len })
    }
}

/// A file's length, or a block device's.
fn length(file: &File) -> io::Result<u64> {
    // Seeking tells the length of both; the position is used by nothing else.
    rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        "block"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let read_only = if self.config.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | read_only
    }

    /// 5.2.4: capacity in sectors, `size_max` (not offered), `seg_max`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..].copy_from_slice(&SEG_MAX.to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let len = data.len().min(config.len() - start);
        data[..len].copy_from_slice(&config[start..start + len]);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queue_kicked(&mut self, _index: usize) {
        self.serve();
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
