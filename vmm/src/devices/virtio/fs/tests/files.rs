//! Data: reading, writing, sizes, holes, and files that are deleted while open.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::super::abi::{
    FATTR_FH, FATTR_KILL_SUIDGID, FATTR_MODE, FATTR_MTIME, FATTR_SIZE, FUSE_GETATTR_FH,
    FUSE_OPEN_KILL_SUIDGID, FUSE_WRITE_KILL_SUIDGID,
};
use super::super::wire::{
    CopyFileRangeIn, FallocateIn, FlushIn, FsyncIn, GetattrIn, Kstatfs, LseekIn, StatxIn, StatxOut,
};
use super::*;

/// A megabyte that repeats at no power of two.
fn pattern(len: usize) -> Vec<u8> {
    (0..=240).cycle().take(len).collect()
}

#[test]
fn what_is_written_is_on_the_host_and_is_read_back() {
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o640);
    let data = pattern(1 << 20);
    assert_eq!(client.write(entry.nodeid, fh, 3, &data), Ok(1 << 20));
    let content = std::fs::read(directory.path().join("file")).unwrap();
    assert!(content[3..] == data && content[..3] == [0; 3]);
    assert!(client.read(entry.nodeid, fh, 3, 1 << 20).unwrap() == data);
    assert_eq!(
        client.read(entry.nodeid, fh, (1 << 20) - 2, 100).unwrap().len(),
        5,
        "short only at the end"
    );
    assert_eq!(client.read(entry.nodeid, fh, 9 << 20, 100).unwrap(), b"");
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.size, (1 << 20) + 3);
    client.release(entry.nodeid, fh);
    assert_eq!(client.read(entry.nodeid, fh, 0, 1), Err(Errno::BADF));
}

#[test]
fn data_go_through_chains_in_many_pieces() {
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    let data = pattern(200 * 4096);
    let write = WriteIn {
        fh,
        size: 200 * 4096,
        ..WriteIn::default()
    };
    let header = client.header(Opcode::Write as u32, entry.nodeid, WriteIn::SIZE + data.len());
    let (header, write) = (bytes(header), bytes(write));
    let mut buffers = vec![Buffer::Readable(&header), Buffer::Readable(&write)];
    buffers.extend(data.chunks(4096).map(Buffer::Readable));
    buffers.extend([Buffer::Writable(16), Buffer::Writable(8)]);
    client.requests.recycle();
    let head = client.requests.add_indirect(&buffers);
    client.fs.queue_kicked(1);
    assert_eq!(client.requests.used(), vec![(head, 24)]);
    assert!(std::fs::read(directory.path().join("file")).unwrap() == data);

    let read = ReadIn {
        fh,
        size: 200 * 4096,
        ..ReadIn::default()
    };
    let header = client.header(Opcode::Read as u32, entry.nodeid, ReadIn::SIZE);
    let (header, read) = (bytes(header), bytes(read));
    let mut buffers = vec![
        Buffer::Readable(&header),
        Buffer::Readable(&read),
        Buffer::Writable(16),
    ];
    buffers.extend([Buffer::Writable(4096)].repeat(200));
    client.requests.recycle();
    let head = client.requests.add_indirect(&buffers);
    client.fs.queue_kicked(1);
    let len = 16 + 200 * 4096;
    assert_eq!(client.requests.used(), vec![(head, u32::try_from(len).unwrap())]);
    assert!(client.requests.written(head, len)[16..] == data);
}

#[test]
fn deleted_file_lives_on_while_it_is_open() {
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    client.write(entry.nodeid, fh, 0, b"still here").unwrap();
    client.unlink(FUSE_ROOT_ID, c"file").unwrap();
    assert!(!directory.path().join("file").exists());
    assert_eq!(client.lookup(FUSE_ROOT_ID, c"file"), Err(Errno::NOENT));
    assert_eq!(client.read(entry.nodeid, fh, 0, 20).unwrap(), b"still here");
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.nlink, 0);
    let change = SetattrIn {
        valid: FATTR_SIZE | FATTR_FH | FATTR_MODE,
        fh,
        size: 5,
        mode: 0o604,
        ..SetattrIn::default()
    };
    let changed = client.setattr(entry.nodeid, change).unwrap().attr;
    assert_eq!((changed.size, changed.mode & 0o777), (5, 0o604));
    assert_eq!(client.read(entry.nodeid, fh, 0, 20).unwrap(), b"still");
    let again = client.open(entry.nodeid, OFlags::RDONLY).unwrap().fh;
    assert_eq!(client.read(entry.nodeid, again, 0, 20).unwrap(), b"still");
}

#[test]
fn append_goes_to_the_end_whoever_wrote_there() {
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"log", 0o600);
    client.write(entry.nodeid, fh, 0, b"guest ").unwrap();
    let on_host = std::fs::OpenOptions::new()
        .write(true)
        .open(directory.path().join("log"))
        .unwrap();
    on_host.write_all_at(b"host ", 6).unwrap();
    let append = WriteIn {
        fh,
        offset: 6,
        flags: flags(OFlags::WRONLY | OFlags::APPEND),
        ..WriteIn::default()
    };
    client.write_with(entry.nodeid, append, b"guest").unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("log")).unwrap(),
        b"guest host guest"
    );
    // The guest has cleared O_APPEND by fcntl: the flags of the write count.
    client.write(entry.nodeid, fh, 0, b"G").unwrap();
    assert_eq!(
        std::fs::read(directory.path().join("log")).unwrap(),
        b"Guest host guest"
    );
}

#[test]
fn open_truncates_and_access_modes_hold() {
    let (directory, mut client) = fixture();
    std::fs::write(directory.path().join("file"), "content").unwrap();
    let node = client.lookup(FUSE_ROOT_ID, c"file").unwrap().nodeid;
    let reader = client.open(node, OFlags::RDONLY).unwrap().fh;
    assert_eq!(client.write(node, reader, 0, b"x"), Err(Errno::BADF));
    let writer = client.open(node, OFlags::WRONLY).unwrap().fh;
    assert_eq!(client.read(node, writer, 0, 1), Err(Errno::BADF));
    client.open(node, OFlags::WRONLY | OFlags::TRUNC).unwrap();
    assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"");
    // Flags that would mean something to the host are not passed on.
    client
        .open(
            node,
            OFlags::RDONLY | OFlags::PATH | OFlags::DIRECT | OFlags::NOATIME,
        )
        .unwrap();
    assert_eq!(client.open(FUSE_ROOT_ID, OFlags::RDONLY), Err(Errno::ISDIR));
}

#[test]
fn holes_are_found_and_made() {
    // tmpfs and ext4 both have holes of 64 KiB.
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"sparse", 0o600);
    client
        .write(entry.nodeid, fh, 1 << 20, &pattern(1 << 16))
        .unwrap();
    let seek = |client: &mut Client, offset, whence: i32| {
        let args = bytes(LseekIn {
            fh,
            offset,
            whence: whence.unsigned_abs(),
            padding: 0,
        });
        client
            .call(Opcode::Lseek, entry.nodeid, &args, 8)
            .map(|reply| parse::<u64>(&reply))
    };
    assert_eq!(seek(&mut client, 0, libc::SEEK_DATA), Ok(1 << 20));
    assert_eq!(
        seek(&mut client, 1 << 20, libc::SEEK_HOLE),
        Ok((1 << 20) + (1 << 16))
    );
    assert_eq!(seek(&mut client, 2 << 20, libc::SEEK_DATA), Err(Errno::NXIO));
    assert_eq!(seek(&mut client, 0, libc::SEEK_SET), Err(Errno::INVAL));

    let allocate = |client: &mut Client, mode: i32, offset, length| {
        let args = bytes(FallocateIn {
            fh,
            offset,
            length,
            mode: mode.unsigned_abs(),
            padding: 0,
        });
        client.call(Opcode::Fallocate, entry.nodeid, &args, 0)
    };
    allocate(
        &mut client,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        1 << 20,
        1 << 16,
    )
    .unwrap();
    assert_eq!(client.read(entry.nodeid, fh, 1 << 20, 4096).unwrap(), [0; 4096]);
    allocate(&mut client, 0, 0, 2 << 20).unwrap();
    assert_eq!(
        std::fs::metadata(directory.path().join("sparse")).unwrap().len(),
        2 << 20
    );
    allocate(&mut client, libc::FALLOC_FL_KEEP_SIZE, 2 << 20, 1 << 16).unwrap();
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.size, 2 << 20);
    let collapse = allocate(&mut client, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(Errno::OPNOTSUPP));
}

#[test]
fn ranges_are_copied_on_the_host() {
    let (directory, mut client) = fixture();
    let (from, fh_in) = client.create(FUSE_ROOT_ID, c"from", 0o600);
    let (to, fh_out) = client.create(FUSE_ROOT_ID, c"to", 0o600);
    client.write(from.nodeid, fh_in, 0, &pattern(100_000)).unwrap();
    let input = CopyFileRangeIn {
        fh_in,
        off_in: 10,
        nodeid_out: to.nodeid,
        fh_out,
        off_out: 5,
        len: 50_000,
        flags: 0,
    };
    let reply = client
        .call(Opcode::CopyFileRange, from.nodeid, &bytes(input), ROOM)
        .unwrap();
    assert_eq!(parse::<WriteOut>(&reply).size, 50_000);
    assert!(std::fs::read(directory.path().join("to")).unwrap()[5..] == pattern(100_000)[10..50_010]);
    let wrong_node = CopyFileRangeIn {
        nodeid_out: from.nodeid,
        ..input
    };
    assert_eq!(
        client.call(Opcode::CopyFileRange, from.nodeid, &bytes(wrong_node), ROOM),
        Err(Errno::BADF)
    );
}

#[test]
fn set_id_bits_go_when_the_guest_asks() {
    let (directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"program", 0o755);
    let path = directory.path().join("program");
    let mode = || std::fs::metadata(&path).unwrap().mode() & 0o7777;
    let arm = || std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6755)).unwrap();
    let write = WriteIn {
        fh,
        ..WriteIn::default()
    };
    if is_root() {
        arm();
        client.write_with(entry.nodeid, write, b"by one who may").unwrap();
        assert_eq!(mode(), 0o6755);
    }
    arm();
    client
        .write_with(
            entry.nodeid,
            WriteIn {
                write_flags: FUSE_WRITE_KILL_SUIDGID,
                ..write
            },
            b"x",
        )
        .unwrap();
    assert_eq!(mode(), 0o755);

    arm();
    let cut = SetattrIn {
        valid: FATTR_SIZE | FATTR_KILL_SUIDGID,
        size: 1,
        ..SetattrIn::default()
    };
    client.setattr(entry.nodeid, cut).unwrap();
    assert_eq!(mode(), 0o755);

    arm();
    let open = OpenIn {
        flags: flags(OFlags::WRONLY | OFlags::TRUNC),
        open_flags: FUSE_OPEN_KILL_SUIDGID,
    };
    client
        .call(Opcode::Open, entry.nodeid, &bytes(open), ROOM)
        .unwrap();
    assert_eq!((mode(), std::fs::metadata(&path).unwrap().len()), (0o755, 0));

    // Without group execution the group bit means mandatory locking, and stays.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6705)).unwrap();
    client
        .write_with(
            entry.nodeid,
            WriteIn {
                write_flags: FUSE_WRITE_KILL_SUIDGID,
                ..write
            },
            b"x",
        )
        .unwrap();
    assert_eq!(mode() & 0o4000, 0);
}

#[test]
fn times_are_set_and_orders_in_disguise_refused() {
    let (directory, mut client) = fixture();
    let (entry, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    let before_1970 = (-86_400i64).cast_unsigned();
    let set = SetattrIn {
        valid: FATTR_MTIME,
        mtime: before_1970,
        mtimensec: 5,
        ..SetattrIn::default()
    };
    let attr = client.setattr(entry.nodeid, set).unwrap().attr;
    assert_eq!((attr.mtime, attr.mtimensec), (before_1970, 5));
    assert_eq!(
        std::fs::metadata(directory.path().join("file")).unwrap().mtime(),
        -86_400
    );
    let omit = u32::try_from(libc::UTIME_OMIT).unwrap();
    let disguised = SetattrIn {
        mtimensec: omit,
        ..set
    };
    assert_eq!(client.setattr(entry.nodeid, disguised), Err(Errno::INVAL));
    // A link's own times.
    let link = client.symlink(FUSE_ROOT_ID, c"link", c"nowhere").unwrap();
    assert_eq!(client.setattr(link.nodeid, set).unwrap().attr.mtime, before_1970);
}

#[test]
fn sizes_out_of_range_are_refused() {
    let (_directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    let huge = SetattrIn {
        valid: FATTR_SIZE,
        size: u64::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(client.setattr(entry.nodeid, huge), Err(Errno::FBIG));
    assert_eq!(client.write(entry.nodeid, fh, u64::MAX, b"x"), Err(Errno::INVAL));
    let size_of_directory = SetattrIn {
        valid: FATTR_SIZE,
        ..SetattrIn::default()
    };
    assert_eq!(client.setattr(FUSE_ROOT_ID, size_of_directory), Err(Errno::ISDIR));
    // More than the answer has room for is not read, whatever the request says.
    client.write(entry.nodeid, fh, 0, &pattern(9000)).unwrap();
    let args = bytes(ReadIn {
        fh,
        size: u32::MAX,
        ..ReadIn::default()
    });
    assert_eq!(
        client.call(Opcode::Read, entry.nodeid, &args, 100).unwrap().len(),
        100
    );
}

#[test]
fn the_small_requests_of_open_files_work() {
    let (_directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    for (opcode, args) in [
        (
            Opcode::Flush,
            bytes(FlushIn {
                fh,
                ..FlushIn::default()
            }),
        ),
        (
            Opcode::Fsync,
            bytes(FsyncIn {
                fh,
                fsync_flags: 1,
                padding: 0,
            }),
        ),
        (
            Opcode::Fsync,
            bytes(FsyncIn {
                fh,
                ..FsyncIn::default()
            }),
        ),
    ] {
        assert_eq!(client.call(opcode, entry.nodeid, &args, 0), Ok(Vec::new()));
        assert_eq!(
            client.call(opcode, FUSE_ROOT_ID, &args, 0),
            Err(Errno::BADF),
            "another's handle"
        );
    }
    let directory = client.opendir(FUSE_ROOT_ID).unwrap().fh;
    let args = bytes(FsyncIn {
        fh: directory,
        ..FsyncIn::default()
    });
    assert_eq!(
        client.call(Opcode::Fsyncdir, FUSE_ROOT_ID, &args, 0),
        Ok(Vec::new())
    );
    assert_eq!(
        client.call(Opcode::Syncfs, FUSE_ROOT_ID, &bytes(0u64), 0),
        Ok(Vec::new())
    );
    let by_file = GetattrIn {
        getattr_flags: FUSE_GETATTR_FH,
        dummy: 0,
        fh,
    };
    assert!(
        client
            .call(Opcode::Getattr, entry.nodeid, &bytes(by_file), ROOM)
            .is_ok()
    );
    assert_eq!(
        client.call(Opcode::Getattr, FUSE_ROOT_ID, &bytes(by_file), ROOM),
        Err(Errno::BADF)
    );
}

#[test]
fn statx_has_the_birth_time_and_statfs_the_space() {
    let (directory, mut client) = fixture();
    let (entry, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    let reply = client
        .call(Opcode::Statx, entry.nodeid, &bytes(StatxIn::default()), ROOM)
        .unwrap();
    assert_eq!(reply.len(), 288);
    let answer: StatxOut = parse(&reply);
    let on_host = std::fs::metadata(directory.path().join("file")).unwrap();
    assert_eq!(
        (answer.ino, u32::from(answer.mode)),
        (on_host.ino(), on_host.mode())
    );
    if answer.mask & 0x800 != 0 {
        let born = on_host
            .created()
            .unwrap()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(answer.btime.tv_sec.cast_unsigned(), born.as_secs());
    }
    let reply = client.call(Opcode::Statfs, FUSE_ROOT_ID, &[], ROOM).unwrap();
    assert_eq!(reply.len(), 80);
    let space: Kstatfs = parse(&reply);
    assert!(space.blocks > 0 && space.bsize > 0 && space.namelen == 255);
}
