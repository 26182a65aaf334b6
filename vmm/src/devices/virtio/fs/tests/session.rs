//! INIT, DESTROY, what is not known, and the device around the server.

use super::super::abi::{
    FUSE_HANDLE_KILLPRIV_V2, FUSE_INIT_EXT, FUSE_MAX_PAGES, FUSE_POSIX_ACL, FUSE_SUBMOUNTS,
    FUSE_WRITEBACK_CACHE,
};
use super::super::config::{Cache, CachePolicy, Error};
use super::*;

#[test]
fn init_takes_what_both_sides_know() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::unconnected(config(directory.path()));
    let answer = client.init(ALL_FLAGS).unwrap();
    assert_eq!((answer.major, answer.minor), (7, 41));
    assert_eq!(
        (answer.max_pages, answer.max_write, answer.time_gran),
        (256, 1 << 20, 1)
    );
    let flags = u64::from(answer.flags);
    for wanted in [
        FUSE_SUBMOUNTS,
        FUSE_MAX_PAGES,
        FUSE_HANDLE_KILLPRIV_V2,
        FUSE_POSIX_ACL,
        FUSE_INIT_EXT,
    ] {
        assert_ne!(flags & wanted, 0);
    }
    assert_eq!(flags & FUSE_WRITEBACK_CACHE, 0, "only by configuration");
    // Posix locks, export support, flock: the guest's own business.
    assert_eq!(flags & (1 << 1 | 1 << 4 | 1 << 10), 0);

    let answer = client.init(u32::try_from(FUSE_MAX_PAGES).unwrap()).unwrap();
    assert_eq!(
        u64::from(answer.flags),
        FUSE_MAX_PAGES,
        "nothing that the guest does not know"
    );
}

#[test]
fn writeback_and_acls_go_by_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::unconnected(FsConfig {
        writeback: true,
        posix_acl: false,
        ..config(directory.path())
    });
    let flags = u64::from(client.init(ALL_FLAGS).unwrap().flags);
    assert_ne!(flags & FUSE_WRITEBACK_CACHE, 0);
    assert_eq!(flags & FUSE_POSIX_ACL, 0);
}

#[test]
fn old_and_future_versions_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::unconnected(config(directory.path()));
    let mut ask = |major, minor| {
        let input = InitIn {
            major,
            minor,
            ..InitIn::default()
        };
        let reply = client.call(Opcode::Init, 0, &bytes(input), ROOM);
        reply
            .map(|reply| parse::<InitOut>(&reply))
            .map(|answer| (answer.major, answer.minor))
    };
    assert_eq!(ask(7, 31), Ok((7, 31)));
    assert_eq!(ask(7, 99), Ok((7, 41)));
    assert_eq!(ask(8, 0), Ok((7, 41)), "the guest then sends INIT again");
    assert_eq!(ask(7, 30), Err(Errno::PROTO));
    assert_eq!(ask(6, 50), Err(Errno::PROTO));
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::unconnected(config(directory.path()));
    assert_eq!(client.getattr(FUSE_ROOT_ID), Err(Errno::PROTO));
    client.init(ALL_FLAGS).unwrap();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    assert_eq!(client.fs.holdings(), (2, 1, 1));
    client.call(Opcode::Destroy, 0, &[], 0).unwrap();
    assert_eq!(client.getattr(FUSE_ROOT_ID), Err(Errno::PROTO));
    assert_eq!(client.fs.holdings(), (1, 0, 0));
    client.init(ALL_FLAGS).unwrap();
    assert_eq!(client.getattr(entry.nodeid), Err(Errno::STALE));
    assert_eq!(client.read(entry.nodeid, fh, 0, 1), Err(Errno::BADF));
}

#[test]
fn device_reset_ends_the_session() {
    let (_directory, mut client) = fixture();
    client.create(FUSE_ROOT_ID, c"file", 0o600);
    client.fs.reset();
    assert_eq!(client.fs.holdings(), (1, 0, 0));
    client.fs.queue_kicked(1); // no queue to look at any more
    assert_eq!(client.fs.state().mistakes, 0);
}

#[test]
fn unknown_requests_are_answered_so_and_silent_ones_not_at_all() {
    let (_directory, mut client) = fixture();
    // ACCESS, BMAP, IOCTL, POLL, SETUPMAPPING, GETLK, SETLK, SETLKW and what is yet to come.
    for opcode in [34u32, 37, 39, 40, 48, 31, 32, 33, 53, 4096, u32::MAX] {
        let header = client.header(opcode, FUSE_ROOT_ID, 0);
        let answer: OutHeader = parse(&client.exchange(&bytes(header), Some(0)).unwrap());
        assert_eq!(
            (answer.error, answer.unique),
            (-Errno::NOSYS.raw_os_error(), header.unique)
        );
    }
    client.tell(Opcode::Interrupt, 0, &bytes(77u64));
    client.tell(Opcode::Forget, 99, &bytes(1u64));
    client.tell(Opcode::BatchForget, 0, &bytes(5u64));
    client.getattr(FUSE_ROOT_ID).unwrap();
}

#[test]
fn many_requests_in_one_kick_are_all_answered_with_few_interrupts() {
    let (_directory, mut client) = fixture();
    client.requests.interrupts();
    client.requests.recycle();
    let mut heads = Vec::new();
    for _ in 0..20 {
        let header = client.header(Opcode::Getattr as u32, FUSE_ROOT_ID, GetattrIn::SIZE);
        let request = [bytes(header), bytes(GetattrIn::default())].concat();
        heads.push(
            client
                .requests
                .add(&[Buffer::Readable(&request), Buffer::Writable(120)]),
        );
    }
    client.fs.queue_kicked(1);
    let used = client.requests.used();
    assert_eq!(used, heads.iter().map(|head| (*head, 120)).collect::<Vec<_>>());
    assert_eq!(client.requests.interrupts(), 3, "after 8, 16 and 20");
}

#[test]
fn configuration_space_is_tag_and_one_queue() {
    let (_directory, client) = fixture();
    let mut space = [0xff; 44];
    client.fs.read_config(0, &mut space);
    assert_eq!(&space[..5], b"moat\0");
    assert_eq!(&space[36..40], &1u32.to_le_bytes());
    assert_eq!(&space[40..], &[0xff; 4], "beyond the end nothing is written");
    let mut past = [7];
    client.fs.read_config(u64::MAX, &mut past);
    assert_eq!(past, [7]);
    assert_eq!((client.fs.device_type(), client.fs.queue_sizes().len()), (26, 2));
}

#[test]
fn impossible_configurations_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for tag in ["", "1234567890123456789012345678901234567", "a\0b"] {
        let bad = FsConfig {
            tag: tag.to_owned(),
            ..config(directory.path())
        };
        assert!(matches!(Fs::new(bad), Err(Error::Tag(_))));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let root = rustix::fs::open(file.path(), OFlags::PATH, Mode::empty()).unwrap();
    assert!(matches!(
        Fs::new(FsConfig {
            root,
            ..config(directory.path())
        }),
        Err(Error::RootKind)
    ));
    let proc_self_fd = open_directory(directory.path());
    assert!(matches!(
        Fs::new(FsConfig {
            proc_self_fd,
            ..config(directory.path())
        }),
        Err(Error::Proc(_))
    ));
}

#[test]
fn cache_times_go_by_export() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["rootfs", "volumes", "rootfs/etc", "volumes/0"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::fs::write(directory.path().join("rootfs/etc/passwd"), "x").unwrap();
    let mut client = Client::with(FsConfig {
        cache: CachePolicy::cell(),
        ..config(directory.path())
    });
    let private = client.walk(&[c"rootfs", c"etc", c"passwd"]).unwrap();
    assert_eq!((private.entry_valid, private.attr_valid), (1, 1));
    assert_eq!(client.getattr(private.nodeid).unwrap().attr_valid, 1);
    let shared = client.walk(&[c"volumes", c"0"]).unwrap();
    assert_eq!((shared.entry_valid, shared.attr_valid), (0, 0));

    // That there is nothing may be remembered on a private export only.
    let rootfs = client.lookup(FUSE_ROOT_ID, c"rootfs").unwrap().nodeid;
    let nothing = client.lookup(rootfs, c"none").unwrap();
    assert_eq!((nothing.nodeid, nothing.entry_valid), (0, 1));
    assert_eq!(client.lookup(shared.nodeid, c"none"), Err(Errno::NOENT));

    let opened = client.open(private.nodeid, OFlags::RDONLY).unwrap();
    assert_ne!(opened.open_flags, 0, "the cache is kept");
    let file = client.create(shared.nodeid, c"file", 0o600).0;
    assert_eq!(client.open(file.nodeid, OFlags::RDONLY).unwrap().open_flags, 0);
    assert_eq!(CachePolicy::default().default, Cache::Shared);
}

#[test]
fn read_only_export_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "text").unwrap();
    let mut client = Client::with(FsConfig {
        readonly: true,
        ..config(directory.path())
    });
    let file = client.lookup(FUSE_ROOT_ID, c"file").unwrap().nodeid;
    assert_eq!(client.open(file, OFlags::RDWR), Err(Errno::ROFS));
    assert_eq!(
        client.open(file, OFlags::RDONLY | OFlags::TRUNC),
        Err(Errno::ROFS)
    );
    assert_eq!(client.mkdir(FUSE_ROOT_ID, c"new", 0o755), Err(Errno::ROFS));
    assert_eq!(client.unlink(FUSE_ROOT_ID, c"file"), Err(Errno::ROFS));
    assert_eq!(client.setattr(file, SetattrIn::default()), Err(Errno::ROFS));
    let fh = client.open(file, OFlags::RDONLY).unwrap().fh;
    assert_eq!(client.write(file, fh, 0, b"x"), Err(Errno::ROFS));
    assert_eq!(client.read(file, fh, 0, 10).unwrap(), b"text");
}
