//! POSIX semantics, second part: attributes, locks, and how a file's bytes lie.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, XattrFlags,
    copy_file_range as copy_range, fallocate, fcntl_lock, flock, getxattr, linkat, listxattr, mknodat,
    openat, removexattr, seek, setxattr,
};
use rustix::io::Errno;

use crate::posix::{Checked, claim, doing};

const MIB: u64 = 1 << 20;

fn told<T>(what: &str, result: rustix::io::Result<T>) -> Result<T, String> {
    doing(what, result.map_err(Into::into))
}

fn read_write(path: &Path) -> Result<File, String> {
    doing(
        "open",
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path),
    )
}

pub fn extended_attributes(at: &Path) -> Checked {
    let path = at.join("f");
    doing("create", File::create(&path))?;
    told("set", setxattr(&path, "user.colour", b"blue", XattrFlags::CREATE))?;
    let again = setxattr(&path, "user.colour", b"red", XattrFlags::CREATE);
    claim("CREATE of what is there is EEXIST", again == Err(Errno::EXIST))?;
    told(
        "replace",
        setxattr(&path, "user.colour", b"green", XattrFlags::REPLACE),
    )?;
    let mut value = [0_u8; 64];
    let size = told("get", getxattr(&path, "user.colour", &mut value[..]))?;
    claim("the value", &value[..size] == b"green")?;
    let mut names = vec![0_u8; 4096];
    let size = told("list", listxattr(&path, &mut names[..]))?;
    claim(
        "listed",
        names[..size]
            .split(|b| *b == 0)
            .any(|name| name == b"user.colour"),
    )?;
    claim(
        "too small a buffer is ERANGE",
        getxattr(&path, "user.colour", &mut value[..2]) == Err(Errno::RANGE),
    )?;
    told("remove", removexattr(&path, "user.colour"))?;
    claim(
        "gone",
        getxattr(&path, "user.colour", &mut value[..]) == Err(Errno::NODATA),
    )
}

/// A second process holds the lock that this one then asks for.
pub fn record_locks(at: &Path) -> Checked {
    let path = at.join("f");
    let file = read_write(&path)?;
    let own = doing("own path", env::current_exe())?;
    let mut holder = doing(
        "spawn",
        Command::new(own)
            .arg("hold-lock")
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn(),
    )?;
    let mut word = [0_u8; 5];
    let said = holder.stdout.as_mut().map(|out| out.read_exact(&mut word));
    claim(
        "the holder has it",
        matches!(said, Some(Ok(()))) && &word == b"held\n",
    )?;
    let refused = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    claim(
        "refused while another holds it",
        matches!(refused, Err(Errno::AGAIN | Errno::ACCESS)),
    )?;
    drop(holder.stdin.take());
    doing("wait", holder.wait())?;
    told(
        "granted once the holder has ended",
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
    )
}

/// Holds a record lock until standard input ends.
#[expect(clippy::print_stdout, reason = "tells the other process that it has the lock")]
pub fn hold_lock(path: &Path) -> ExitCode {
    let locked = read_write(path).and_then(|file| {
        told(
            "lock",
            fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
        )
        .map(|()| file)
    });
    if locked.is_err() {
        return ExitCode::FAILURE;
    }
    println!("held");
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    ExitCode::SUCCESS
}

pub fn whole_file_locks(at: &Path) -> Checked {
    let path = at.join("f");
    let (one, two) = (read_write(&path)?, read_write(&path)?);
    told("shared", flock(&one, FlockOperation::NonBlockingLockShared))?;
    told("shared twice", flock(&two, FlockOperation::NonBlockingLockShared))?;
    let refused = flock(&two, FlockOperation::NonBlockingLockExclusive);
    claim(
        "exclusive beside shared is EWOULDBLOCK",
        refused == Err(Errno::WOULDBLOCK),
    )?;
    told("unlock", flock(&one, FlockOperation::Unlock))?;
    told("exclusive", flock(&two, FlockOperation::NonBlockingLockExclusive))
}

pub fn o_tmpfile(at: &Path) -> Checked {
    let made = openat(
        CWD,
        at,
        OFlags::TMPFILE | OFlags::RDWR,
        Mode::from_bits_truncate(0o640),
    );
    let mut file = File::from(told("open", made)?);
    claim("no name", doing("readdir", fs::read_dir(at))?.next().is_none())?;
    doing("write", file.write_all(b"anonymous"))?;
    let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let name = at.join("named");
    told("link", linkat(CWD, &own, CWD, &name, AtFlags::SYMLINK_FOLLOW))?;
    claim(
        "content under its name",
        doing("read", fs::read(&name))? == b"anonymous",
    )?;
    claim(
        "its mode",
        doing("stat", fs::metadata(&name))?.mode() & 0o777 == 0o640,
    )
}

pub fn sparse_files(at: &Path) -> Checked {
    let file = read_write(&at.join("f"))?;
    doing("write at 64 MiB", file.write_all_at(b"data", 64 * MIB))?;
    let meta = doing("stat", file.metadata())?;
    claim("its size", meta.size() == 64 * MIB + 4)?;
    claim("it takes little room", meta.blocks() * 512 < MIB)?;
    let data = told("SEEK_DATA", seek(&file, SeekFrom::Data(0)))?;
    claim("data begins near its end", data > 63 * MIB && data <= 64 * MIB)?;
    claim(
        "a hole at the start",
        told("SEEK_HOLE", seek(&file, SeekFrom::Hole(0)))? == 0,
    )?;
    doing("grow", file.set_len(1 << 40))?;
    claim(
        "1 TiB of nothing",
        doing("stat", file.metadata())?.blocks() * 512 < MIB,
    )
}

pub fn allocation(at: &Path) -> Checked {
    let file = read_write(&at.join("f"))?;
    told("fallocate", fallocate(&file, FallocateFlags::empty(), 0, MIB))?;
    let meta = doing("stat", file.metadata())?;
    claim("size and room", meta.size() == MIB && meta.blocks() * 512 >= MIB)?;
    doing("fill", file.write_all_at(&vec![7; 65536], 0))?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    told("punch a hole", fallocate(&file, punch, 0, 32768))?;
    let mut byte = [1_u8; 2];
    doing("read", file.read_exact_at(&mut byte[..1], 100))?;
    doing("read", file.read_exact_at(&mut byte[1..], 40000))?;
    claim("zeros in the hole, data beside it", byte == [0, 7])?;
    told(
        "beyond the end, size kept",
        fallocate(&file, FallocateFlags::KEEP_SIZE, MIB, MIB),
    )?;
    claim("size kept", doing("stat", file.metadata())?.size() == MIB)
}

pub fn copy_file_range(at: &Path) -> Checked {
    let (from, to) = (read_write(&at.join("from"))?, read_write(&at.join("to"))?);
    doing("write", from.write_all_at(&vec![5; 100_000], 0))?;
    let (mut here, mut there) = (1000_u64, 0_u64);
    while here < 100_000 {
        let room = usize::try_from(100_000 - here).unwrap_or_default();
        let moved = told(
            "copy",
            copy_range(&from, Some(&mut here), &to, Some(&mut there), room),
        )?;
        claim("it moves on", moved > 0)?;
    }
    let copied = doing("read", fs::read(at.join("to")))?;
    claim(
        "the copy",
        copied.len() == 99_000 && copied.iter().all(|b| *b == 5),
    )
}

/// A FIFO joins two processes of the same kernel, whatever file system its name is on.
pub fn fifo(at: &Path) -> Checked {
    let path = at.join("fifo");
    told(
        "mkfifo",
        mknodat(
            CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_bits_truncate(0o600),
            0,
        ),
    )?;
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || fs::read(path))
    };
    doing("write", fs::write(&path, "through"))?;
    let read = reader.join().map_err(|_| "the reader panicked".to_owned())?;
    claim("what was written is read", doing("read", read)? == b"through")
}

pub fn sync(at: &Path) -> Checked {
    let mut file = read_write(&at.join("f"))?;
    doing("write", file.write_all(b"kept"))?;
    doing("fsync", file.sync_all())?;
    doing("fdatasync", file.sync_data())?;
    let folder = doing("open the folder", File::open(at))?;
    doing("fsync of the folder", folder.sync_all())
}
