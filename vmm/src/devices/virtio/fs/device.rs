//! The virtio file system device (VIRTIO 1.2, 5.11): chains in, chains back. Queue 0 carries what must not
//! wait (FORGET), queue 1 all else.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::chain::{Chain, ChainError, ChainLimit};
use super::super::{Activation, GuestMemory, VirtioDevice};
use super::abi::Opcode;
use super::config::{Error, FsConfig};
use super::server::{ARGS_MAX, IO_MAX, REPLY_MAX, Request, Server, take};
use super::wire::{InHeader, OutHeader, ReadIn, Wire, WriteIn};

/// Device id (VIRTIO 1.2, 5.11.1).
const VIRTIO_ID_FS: u32 = 26;

/// Length of the tag in the configuration space (5.11.4); the number of request queues follows.
const TAG_LEN: usize = 36;

/// A request of 256 pages takes 260 descriptors where the driver has no indirect ones; four of those fit,
/// and FORGETs are one descriptor each.
const QUEUE_SIZES: &[u16] = &[128, 1024];

/// Requests answered between two interrupts, so that the first of a long batch does not wait for the last.
const BATCH: usize = 8;

const LIMIT: ChainLimit = ChainLimit {
    readable: InHeader::SIZE + WriteIn::SIZE + IO_MAX + ARGS_MAX,
    writable: OutHeader::SIZE + IO_MAX + REPLY_MAX,
};

/// What a device has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// Requests answered, well or with an error.
    pub requests: u64,
    /// Chains that were no request at all, and went back empty.
    pub mistakes: u64,
}

/// A virtio-fs device: one directory tree of the host in the guest.
pub struct Fs {
    tag: [u8; TAG_LEN],
    server: Server,
    activation: Option<Activation>,
    state: FsState,
    args: Vec<u8>,
    reply: Vec<u8>,
}

impl Fs {
    /// A device that waits for its driver.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: FsConfig) -> Result<Fs, Error> {
        let name = config.tag.as_bytes();
        let mut tag = [0; TAG_LEN];
        match tag.get_mut(..name.len()) {
            Some(start) if !name.is_empty() && !name.contains(&0) => start.copy_from_slice(name),
            _ => return Err(Error::Tag(config.tag)),
        }
        Ok(Fs {
            tag,
            server: Server::new(config)?,
            activation: None,
            state: FsState::default(),
            args: Vec::new(),
            reply: Vec::new(),
        })
    }

    /// What it has counted.
    pub fn state(&self) -> FsState {
        self.state
    }

    /// Inodes that the guest knows, descriptors held for them, and files open: for reports and tests.
    pub fn holdings(&self) -> (usize, usize, usize) {
        let server = &self.server;
        (server.inodes.len(), server.inodes.held(), server.handles.len())
    }

    /// Bytes that the argument and answer buffers take.
    #[cfg(test)]
    pub(super) fn args_held(&self) -> usize {
        self.args.capacity() + self.reply.capacity()
    }

    /// Answers one chain; the number of bytes written to it.
    fn answer(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<u32, ChainError> {
        let mut header = [0; InHeader::SIZE];
        chain.read_exact(memory, &mut header)?;
        let header = InHeader::take(&mut header.as_slice()).unwrap_or_default();
        let opcode = Opcode::from_wire(header.opcode);
        self.reply.clear();
        let done = match opcode {
            Some(opcode) => self.dispatch(memory, chain, header, opcode),
            None => Err(Errno::NOSYS),
        };
        self.state.requests += 1;
        if opcode.is_some_and(Opcode::is_silent) {
            return Ok(0);
        }
        let written = match done {
            Ok(direct) => self.reply.len() + direct,
            Err(_) => 0,
        };
        let total = u32::try_from(OutHeader::SIZE + written).unwrap_or(u32::MAX);
        let answer = OutHeader {
            len: total,
            error: done.err().map_or(0, |error| -error.raw_os_error()),
            unique: header.unique,
        };
        let mut bytes = Vec::with_capacity(OutHeader::SIZE);
        answer.put(&mut bytes);
        if done.is_ok() && !self.reply.is_empty() {
            chain.write_at(memory, OutHeader::SIZE, &self.reply)?;
        }
        chain.write_at(memory, 0, &bytes)?;
        Ok(total)
    }

    /// Does what the request says. Small answers are in `self.reply` then; of data, the number of bytes that
    /// lie in the chain already is returned.
    fn dispatch(
        &mut self,
        memory: &GuestMemory,
        chain: &mut Chain,
        header: InHeader,
        opcode: Opcode,
    ) -> Result<usize, Errno> {
        let len = usize::try_from(header.len).map_err(|_| Errno::INVAL)?;
        let args_len = len.checked_sub(InHeader::SIZE).ok_or(Errno::INVAL)?;
        if args_len > chain.readable_left() {
            return Err(Errno::INVAL);
        }
        let room = chain.writable_len().saturating_sub(OutHeader::SIZE);
        match opcode {
            Opcode::Read => self.read(memory, chain, &header, room),
            Opcode::Write => self.write(memory, chain, &header, room),
            _ => {
                if args_len > ARGS_MAX {
                    return Err(Errno::TOOBIG);
                }
                self.args.resize(args_len, 0);
                chain
                    .read_exact(memory, &mut self.args)
                    .map_err(|_| Errno::FAULT)?;
                let request = Request {
                    header,
                    opcode,
                    args: &self.args,
                    room,
                };
                self.server.serve(&request, &mut self.reply)?;
                Ok(0)
            }
        }
    }

    fn read(
        &mut self,
        memory: &GuestMemory,
        chain: &mut Chain,
        header: &InHeader,
        room: usize,
    ) -> Result<usize, Errno> {
        let input: ReadIn = arguments(memory, chain)?;
        let len = usize::try_from(input.size)
            .unwrap_or(usize::MAX)
            .min(room)
            .min(IO_MAX);
        let into = chain
            .writable_slices(memory, OutHeader::SIZE, len)
            .map_err(|_| Errno::FAULT)?;
        self.server.read_into(header, &input, &into)
    }

    fn write(
        &mut self,
        memory: &GuestMemory,
        chain: &mut Chain,
        header: &InHeader,
        room: usize,
    ) -> Result<usize, Errno> {
        let input: WriteIn = arguments(memory, chain)?;
        let len = usize::try_from(input.size).unwrap_or(usize::MAX);
        if len > IO_MAX || len > chain.readable_left() {
            return Err(Errno::INVAL);
        }
        let from = chain.readable_slices(memory, len).map_err(|_| Errno::FAULT)?;
        let output = self.server.write_from(header, &input, &from, room)?;
        output.put(&mut self.reply);
        Ok(0)
    }
}

/// The fixed arguments of READ and WRITE.
fn arguments<T: Wire>(memory: &GuestMemory, chain: &mut Chain) -> Result<T, Errno> {
    let mut bytes = vec![0; T::SIZE];
    chain.read_exact(memory, &mut bytes).map_err(|_| Errno::INVAL)?;
    take(&mut bytes.as_slice())
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn name(&self) -> &str {
        "fs"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // `VIRTIO_FS_F_NOTIFICATION` (5.11.3) would be for servers that speak unasked.
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `num_request_queues` follows the tag.
        let config = [self.tag.as_slice(), &1u32.to_le_bytes()].concat();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.activation = Some(activation);
    }

    fn reset(&mut self) {
        self.activation = None;
        // Without its root the server answers nothing but errors: it stays unagreed.
        let _ = self.server.reset();
    }

    fn queue_kicked(&mut self, index: usize) {
        let Some(mut active) = self.activation.take() else {
            return;
        };
        let Activation { memory, queues, .. } = &mut active;
        if let Some(queue) = queues.get_mut(index) {
            let mut since_interrupt = 0;
            while let Some(popped) = queue.pop(memory, &LIMIT) {
                let (head, written) = match popped {
                    Ok(mut chain) => (chain.head(), self.answer(memory, &mut chain)),
                    Err((head, error)) => (head, Err(error)),
                };
                if written.is_err() {
                    self.state.mistakes += 1;
                }
                queue.push(memory, head, written.unwrap_or(0));
                since_interrupt += 1;
                if since_interrupt == BATCH {
                    since_interrupt = 0;
                    queue.notify(memory);
                }
            }
            if since_interrupt > 0 {
                queue.notify(memory);
            }
        }
        self.activation = Some(active);
    }
}
