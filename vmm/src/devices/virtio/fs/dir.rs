//! OPENDIR, READDIR, READDIRPLUS. Offsets are the host's own directory cookies, so they stay good when
//! entries come and go, and over re-opening.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::handle::Handle;
use super::host;
use super::server::{REPLY_MAX, Request, Server, take};
use super::sys;
use super::wire::{Dirent, EntryOut, ReadIn, Wire};

/// Bytes of entries read from the host at a time.
const BUFFER_LEN: usize = 16 << 10;

/// With more handles than these open, entries that were read and not given out are read again, so that a
/// guest cannot make each open directory cost a buffer.
const KEEP_BUFFERS_MAX: usize = 256;

/// What was read of a directory and not yet given out.
#[derive(Debug, Default)]
pub(super) struct DirStream {
    buffer: Vec<u8>,
    at: usize,
    /// Cookie after the last entry given out, if the descriptor and the buffer go on from there.
    position: Option<u64>,
}

/// One entry as `getdents64` gives it.
struct HostEntry<'a> {
    inode: u64,
    /// Where the next one begins.
    next: u64,
    kind: u8,
    name: &'a CStr,
    record_len: usize,
}

impl DirStream {
    /// Goes to a cookie. The beginning is always read anew, as after `rewinddir`.
    fn go_to(&mut self, directory: &OwnedFd, offset: u64) -> Result<(), Errno> {
        if offset == 0 || self.position != Some(offset) {
            self.drop_buffer();
            rustix::fs::seek(directory, SeekFrom::Start(offset))?;
            self.position = Some(offset);
        }
        Ok(())
    }

    /// The next entry, still to be [`DirStream::pass`]ed; `None` at the end.
    fn peek(&mut self, directory: &OwnedFd) -> Result<Option<HostEntry<'_>>, Errno> {
        if self.at >= self.buffer.len() {
            self.buffer.resize(BUFFER_LEN, 0);
            self.at = 0;
            let got = sys::getdents(directory.as_fd(), &mut self.buffer);
            self.buffer.truncate(*got.as_ref().unwrap_or(&0));
            if got? == 0 {
                return Ok(None);
            }
        }
        parse(self.buffer.get(self.at..).unwrap_or_default())
            .map(Some)
            .ok_or(Errno::IO)
    }

    /// The entry was given out.
    fn pass(&mut self, record_len: usize, next: u64) {
        self.at += record_len;
        self.position = Some(next);
    }

    fn drop_buffer(&mut self) {
        if self.at < self.buffer.len() {
            self.position = None;
        }
        self.buffer = Vec::new();
        self.at = 0;
    }
}

/// `struct linux_dirent64`: inode, cookie of the next, length, kind, name.
fn parse(mut bytes: &[u8]) -> Option<HostEntry<'_>> {
    let inode = u64::take(&mut bytes)?;
    let next = u64::take(&mut bytes)?;
    let record_len = u16::take(&mut bytes)?.into();
    let (kind, name) = bytes.split_first()?;
    Some(HostEntry {
        inode,
        next,
        kind: *kind,
        name: CStr::from_bytes_until_nul(name).ok()?,
        record_len,
    })
}

impl Server {
    /// OPENDIR.
    pub(super) fn opendir(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        self.handles.has_room()?;
        let node = request.header.nodeid;
        let descriptor = self.directory(node)?;
        let file = self
            .proc
            .reopen(&descriptor, FileType::Directory, OFlags::RDONLY)?;
        let handle = Handle {
            node,
            file: Arc::new(file),
            is_writable: false,
            stream: Some(DirStream::default()),
        };
        self.put_opened(handle, reply);
        Ok(())
    }

    /// READDIR: names only.
    pub(super) fn readdir(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        self.list(request, reply, false)
    }

    /// READDIRPLUS: names, and for each a LOOKUP as well.
    pub(super) fn readdirplus(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        self.list(request, reply, true)
    }

    fn list(&mut self, request: &Request<'_>, reply: &mut Vec<u8>, plus: bool) -> Result<(), Errno> {
        let input: ReadIn = take(&mut { request.args })?;
        let size = usize::try_from(input.size).unwrap_or(usize::MAX);
        let size = size.min(request.room).min(REPLY_MAX);
        let node = request.header.nodeid;
        let (directory, stream) = self.handles.stream(input.fh, node)?;
        let directory = Arc::clone(directory);
        let mut taken = std::mem::take(stream);
        let listed = taken
            .go_to(&directory, input.offset)
            .and_then(|()| self.fill(node, &directory, &mut taken, size, plus, reply));
        if taken.at >= taken.buffer.len() || self.handles.len() > KEEP_BUFFERS_MAX {
            taken.drop_buffer();
        }
        if let Ok((_, stream)) = self.handles.stream(input.fh, node) {
            *stream = taken;
        }
        match listed {
            // What was listed before the error is good; the error comes again with the next request.
            Err(_) if !reply.is_empty() => Ok(()),
            listed => listed,
        }
    }

    fn fill(
        &mut self,
        node: u64,
        directory: &OwnedFd,
        stream: &mut DirStream,
        size: usize,
        plus: bool,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        while let Some(entry) = stream.peek(directory)? {
            let name = entry.name.to_bytes();
            let head = if plus { EntryOut::SIZE } else { 0 };
            let padded = (Dirent::SIZE + name.len()).next_multiple_of(8);
            if reply.len() + head + padded > size {
                if reply.is_empty() {
                    return Err(Errno::INVAL);
                }
                break;
            }
            if plus {
                self.entry_of(node, directory, entry.name).put(reply);
            }
            let dirent = Dirent {
                ino: entry.inode,
                off: entry.next,
                namelen: u32::try_from(name.len()).unwrap_or(0),
                kind: entry.kind.into(),
            };
            dirent.put(reply);
            reply.extend_from_slice(name);
            reply.resize(reply.len().next_multiple_of(8), 0);
            let (record_len, next) = (entry.record_len, entry.next);
            stream.pass(record_len, next);
        }
        Ok(())
    }

    /// The entry with a reference counted; one without a node when there can be none. Its descriptor is
    /// opened when it is needed: most listed files are only looked at.
    fn entry_of(&mut self, node: u64, directory: &OwnedFd, name: &CStr) -> EntryOut {
        if matches!(name.to_bytes(), b"." | b"..") {
            return EntryOut::default();
        }
        let found = host::stat_beneath(directory, name);
        found
            .and_then(|stat| self.enter(node, name, &stat, None))
            .unwrap_or_default()
    }
}
