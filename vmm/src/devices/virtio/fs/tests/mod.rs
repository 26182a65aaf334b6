//! A small FUSE client that drives the whole device, from virtqueue to host directory, and what it has to
//! say. As in the guest's kernel, a request is a header, fixed fields, and names; the answer is taken
//! apart by its header.
//!
//! Tests run as any user. Those that need root say so and are skipped with a reason.

mod budget;
mod dirs;
mod files;
mod hostile;
mod mounts;
mod owners;
mod session;
mod tree;
mod xattrs;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::test_driver::{Buffer, TestDriver, test_memory};
use super::super::{Activation, VirtioDevice};
use super::abi::{FUSE_KERNEL_MINOR_VERSION, FUSE_ROOT_ID, Opcode};
use super::wire::{
    AttrOut, CreateIn, EntryOut, GetattrIn, InHeader, InitIn, InitOut, MkdirIn, MknodIn, OpenIn, OpenOut,
    OutHeader, ReadIn, ReleaseIn, SetattrIn, Wire, WriteIn, WriteOut,
};
use super::{Fs, FsConfig};

/// All INIT flags of a Linux 6.12 guest's kernel.
const ALL_FLAGS: u32 = u32::MAX;

/// Room for answers when a test does not care.
const ROOM: usize = 4096;

fn open_directory(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

/// A configuration that exports `path`.
fn config(path: &Path) -> FsConfig {
    FsConfig::new(
        "moat",
        open_directory(path),
        open_directory(Path::new("/proc/self/fd")),
    )
}

fn bytes(structure: impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    structure.put(&mut bytes);
    bytes
}

fn parse<T: Wire>(bytes: &[u8]) -> T {
    T::take(&mut { bytes }).expect("answer is long enough")
}

fn with_name(structure: impl Wire, name: &CStr) -> Vec<u8> {
    [bytes(structure).as_slice(), name.to_bytes_with_nul()].concat()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Prints why a test does nothing. Returns whether it has to.
fn skip_without_root(test: &str) -> bool {
    if !is_root() {
        println!("skipped: {test} needs root");
    }
    !is_root()
}

/// The guest's kernel, as far as the device can tell.
struct Client {
    fs: Fs,
    hiprio: TestDriver,
    requests: TestDriver,
    unique: u64,
    uid: u32,
    gid: u32,
}

impl Client {
    /// A client in session with a server that exports `path`.
    fn new(path: &Path) -> Client {
        Client::with(config(path))
    }

    fn with(config: FsConfig) -> Client {
        let mut client = Client::unconnected(config);
        client.init(ALL_FLAGS).unwrap();
        client
    }

    fn unconnected(config: FsConfig) -> Client {
        let memory = test_memory(16 << 20);
        let (hiprio, first) = TestDriver::new(&memory, 0, 128);
        let (requests, second) = TestDriver::new(&memory, 1 << 20, 1024);
        let mut fs = Fs::new(config).unwrap();
        fs.activate(Activation {
            memory,
            features: 0,
            queues: vec![first, second],
        });
        Client {
            fs,
            hiprio,
            requests,
            unique: 100,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    fn init(&mut self, flags: u32) -> Result<InitOut, Errno> {
        let input = InitIn {
            major: 7,
            minor: FUSE_KERNEL_MINOR_VERSION,
            max_readahead: 128 << 10,
            flags,
        };
        self.call(Opcode::Init, 0, &bytes(input), ROOM)
            .map(|reply| parse(&reply))
    }

    /// Sends a request whose answer has room for `room` bytes after its header, and checks the form of
    /// what comes back.
    fn call(&mut self, opcode: Opcode, node: u64, args: &[u8], room: usize) -> Result<Vec<u8>, Errno> {
        let header = self.header(opcode as u32, node, args.len());
        let request = [bytes(header).as_slice(), args].concat();
        let answer = self.exchange(&request, Some(room)).expect("an answer");
        let head: OutHeader = parse(&answer);
        assert_eq!(head.unique, header.unique);
        assert_eq!(head.len as usize, answer.len());
        let body = answer[OutHeader::SIZE..].to_vec();
        match head.error {
            0 => Ok(body),
            error => {
                assert!(body.is_empty(), "an error has no body");
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    /// Sends what gets no answer, by the queue for such.
    fn tell(&mut self, opcode: Opcode, node: u64, args: &[u8]) {
        let header = self.header(opcode as u32, node, args.len());
        self.hiprio.recycle();
        let head = self
            .hiprio
            .add(&[Buffer::Readable(&[bytes(header).as_slice(), args].concat())]);
        self.fs.queue_kicked(0);
        assert_eq!(self.hiprio.used(), vec![(head, 0)]);
    }

    fn header(&mut self, opcode: u32, node: u64, args_len: usize) -> InHeader {
        self.unique += 2;
        InHeader {
            len: u32::try_from(InHeader::SIZE + args_len).unwrap(),
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: 7,
            ..InHeader::default()
        }
    }

    /// Puts any bytes on the request queue; what was written to the chain, if anything.
    fn exchange(&mut self, request: &[u8], room: Option<usize>) -> Option<Vec<u8>> {
        self.requests.recycle();
        let mut buffers = vec![Buffer::Readable(request)];
        buffers.extend(room.map(|room| Buffer::Writable(OutHeader::SIZE + room)));
        let head = self.requests.add(&buffers);
        self.fs.queue_kicked(1);
        let used = self.requests.used();
        assert_eq!(used.len(), 1, "each chain goes back once");
        assert_eq!(used[0].0, head);
        let len = used[0].1 as usize;
        (len > 0).then(|| self.requests.written(head, len))
    }

    fn lookup(&mut self, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        self.call(Opcode::Lookup, parent, name.to_bytes_with_nul(), ROOM)
            .map(|reply| parse(&reply))
    }

    /// LOOKUP of several names, one below the other.
    fn walk(&mut self, names: &[&CStr]) -> Result<EntryOut, Errno> {
        let mut entry = EntryOut {
            nodeid: FUSE_ROOT_ID,
            ..EntryOut::default()
        };
        for name in names {
            entry = self.lookup(entry.nodeid, name)?;
        }
        Ok(entry)
    }

    fn forget(&mut self, node: u64, count: u64) {
        self.tell(Opcode::Forget, node, &bytes(count));
    }

    fn getattr(&mut self, node: u64) -> Result<AttrOut, Errno> {
        let reply = self.call(Opcode::Getattr, node, &bytes(GetattrIn::default()), ROOM)?;
        Ok(parse(&reply))
    }

    fn setattr(&mut self, node: u64, input: SetattrIn) -> Result<AttrOut, Errno> {
        self.call(Opcode::Setattr, node, &bytes(input), ROOM)
            .map(|reply| parse(&reply))
    }

    fn create_with(
        &mut self,
        parent: u64,
        name: &CStr,
        input: CreateIn,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let reply = self.call(Opcode::Create, parent, &with_name(input, name), ROOM)?;
        Ok((parse(&reply), parse(&reply[EntryOut::SIZE..])))
    }

    /// CREATE for reading and writing, which must succeed.
    fn create(&mut self, parent: u64, name: &CStr, mode: u32) -> (EntryOut, u64) {
        let input = CreateIn {
            flags: flags(OFlags::RDWR | OFlags::CREATE),
            mode: mode | 0o100_000,
            ..CreateIn::default()
        };
        let (entry, opened) = self.create_with(parent, name, input).unwrap();
        (entry, opened.fh)
    }

    fn mkdir(&mut self, parent: u64, name: &CStr, mode: u32) -> Result<EntryOut, Errno> {
        let args = with_name(MkdirIn { mode, umask: 0 }, name);
        self.call(Opcode::Mkdir, parent, &args, ROOM)
            .map(|reply| parse(&reply))
    }

    fn mknod(&mut self, parent: u64, name: &CStr, mode: u32, rdev: u32) -> Result<EntryOut, Errno> {
        let args = with_name(
            MknodIn {
                mode,
                rdev,
                ..MknodIn::default()
            },
            name,
        );
        self.call(Opcode::Mknod, parent, &args, ROOM)
            .map(|reply| parse(&reply))
    }

    fn symlink(&mut self, parent: u64, name: &CStr, target: &CStr) -> Result<EntryOut, Errno> {
        let args = [name.to_bytes_with_nul(), target.to_bytes_with_nul()].concat();
        self.call(Opcode::Symlink, parent, &args, ROOM)
            .map(|reply| parse(&reply))
    }

    fn unlink(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        self.call(Opcode::Unlink, parent, name.to_bytes_with_nul(), 0)
            .map(|_| ())
    }

    fn rename(&mut self, from: (u64, &CStr), to: (u64, &CStr)) -> Result<(), Errno> {
        let args = [
            bytes(to.0).as_slice(),
            from.1.to_bytes_with_nul(),
            to.1.to_bytes_with_nul(),
        ]
        .concat();
        self.call(Opcode::Rename, from.0, &args, 0).map(|_| ())
    }

    fn link(&mut self, node: u64, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        self.call(Opcode::Link, parent, &with_name(node, name), ROOM)
            .map(|reply| parse(&reply))
    }

    fn open(&mut self, node: u64, with: OFlags) -> Result<OpenOut, Errno> {
        let args = bytes(OpenIn {
            flags: flags(with),
            open_flags: 0,
        });
        self.call(Opcode::Open, node, &args, ROOM)
            .map(|reply| parse(&reply))
    }

    fn opendir(&mut self, node: u64) -> Result<OpenOut, Errno> {
        self.call(Opcode::Opendir, node, &bytes(OpenIn::default()), ROOM)
            .map(|reply| parse(&reply))
    }

    fn release(&mut self, node: u64, fh: u64) {
        let args = bytes(ReleaseIn {
            fh,
            ..ReleaseIn::default()
        });
        self.call(Opcode::Release, node, &args, 0).unwrap();
    }

    fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let args = bytes(ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        });
        self.call(Opcode::Read, node, &args, size as usize)
    }

    fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.write_with(
            node,
            WriteIn {
                fh,
                offset,
                ..WriteIn::default()
            },
            data,
        )
    }

    fn write_with(&mut self, node: u64, input: WriteIn, data: &[u8]) -> Result<u32, Errno> {
        let input = WriteIn {
            size: u32::try_from(data.len()).unwrap(),
            ..input
        };
        let reply = self.call(
            Opcode::Write,
            node,
            &[bytes(input).as_slice(), data].concat(),
            ROOM,
        )?;
        Ok(parse::<WriteOut>(&reply).size)
    }
}

fn flags(flags: OFlags) -> u32 {
    flags.bits()
}

/// A temporary directory and a client of a server that exports it.
fn fixture() -> (TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::new(directory.path());
    (directory, client)
}
