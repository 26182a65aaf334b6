//! A guest that means harm: names, links and lengths that lie, and bytes that mean nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::wire::Rename2In;
use super::*;

const BAD_NAMES: [&CStr; 7] = [c"", c".", c"..", c"a/b", c"/etc", c"../escape", c"x/.."];

#[test]
fn bad_names_are_refused_by_every_operation_that_takes_one() {
    let (directory, mut client) = fixture();
    let (file, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    for bad in BAD_NAMES {
        let raw = bad.to_bytes_with_nul();
        let rename = [bytes(FUSE_ROOT_ID).as_slice(), raw, b"ok\0"].concat();
        let rename_to = [bytes(FUSE_ROOT_ID).as_slice(), b"file\0", raw].concat();
        let rename2 = [
            bytes(Rename2In {
                newdir: 1,
                ..Rename2In::default()
            })
            .as_slice(),
            b"file\0",
            raw,
        ]
        .concat();
        for (opcode, args) in [
            (Opcode::Lookup, raw.to_vec()),
            (
                Opcode::Mkdir,
                with_name(
                    MkdirIn {
                        mode: 0o755,
                        umask: 0,
                    },
                    bad,
                ),
            ),
            (
                Opcode::Mknod,
                with_name(
                    MknodIn {
                        mode: libc::S_IFREG | 0o600,
                        ..MknodIn::default()
                    },
                    bad,
                ),
            ),
            (
                Opcode::Create,
                with_name(
                    CreateIn {
                        mode: 0o100_600,
                        flags: 2,
                        ..CreateIn::default()
                    },
                    bad,
                ),
            ),
            (Opcode::Symlink, [raw, b"target\0"].concat()),
            (Opcode::Link, with_name(file.nodeid, bad)),
            (Opcode::Unlink, raw.to_vec()),
            (Opcode::Rmdir, raw.to_vec()),
            (Opcode::Rename, rename),
            (Opcode::Rename, rename_to),
            (Opcode::Rename2, rename2),
        ] {
            assert_eq!(
                client.call(opcode, FUSE_ROOT_ID, &args, ROOM),
                Err(Errno::INVAL),
                "{opcode:?} {bad:?}"
            );
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn links_and_files_are_no_way_to_go_on() {
    let (directory, mut client) = fixture();
    for (name, target) in [
        ("up", ".."),
        ("root", "/"),
        ("self", "."),
        ("proc", "/proc/self/fd/0"),
    ] {
        std::os::unix::fs::symlink(target, directory.path().join(name)).unwrap();
        let name = std::ffi::CString::new(name).unwrap();
        let link = client.lookup(FUSE_ROOT_ID, &name).unwrap();
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(client.lookup(link.nodeid, c"etc"), Err(Errno::NOTDIR));
        assert_eq!(client.opendir(link.nodeid), Err(Errno::NOTDIR));
        assert_eq!(client.mkdir(link.nodeid, c"x", 0o755), Err(Errno::NOTDIR));
        assert_eq!(client.unlink(link.nodeid, c"x"), Err(Errno::NOTDIR));
        assert_eq!(client.open(link.nodeid, OFlags::RDWR), Err(Errno::ACCESS));
        assert_eq!(client.link(FUSE_ROOT_ID, link.nodeid, c"x"), Err(Errno::NOTDIR));
    }
}

/// The guest (here: a thread, as on a shared volume) changes a directory into a link and back, all the time.
#[test]
fn directory_that_becomes_a_link_never_leads_out() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "secret").unwrap();
    let inside = directory.path().join("dir");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join("file"), "harmless").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(outside.path(), &link).unwrap();
    // So few descriptors that the directory is opened again and again.
    let mut client = Client::with(FsConfig {
        max_descriptors: Some(16),
        ..config(directory.path())
    });
    for i in 0..40 {
        std::fs::create_dir(directory.path().join(format!("other{i}"))).unwrap();
    }

    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, inside, link) = (Arc::clone(&stop), inside.clone(), link.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &inside, rustix::fs::CWD, &link, flags).unwrap();
            }
        }
    });
    let mut reached = 0;
    for round in 0..3000 {
        let other = std::ffi::CString::new(format!("other{}", round % 40)).unwrap();
        let _ = client.lookup(FUSE_ROOT_ID, &other);
        let _ = client.create_with(
            FUSE_ROOT_ID,
            c"dir",
            CreateIn {
                flags: 2,
                mode: 0o100_600,
                ..CreateIn::default()
            },
        );
        let Ok(node) = client.lookup(FUSE_ROOT_ID, c"dir").map(|entry| entry.nodeid) else {
            continue;
        };
        let _ = client.mkdir(node, c"made", 0o755);
        if let Ok(file) = client.lookup(node, c"file") {
            assert_eq!(file.attr.size, 8, "harmless, not secret");
            if let Ok(open) = client.open(file.nodeid, OFlags::RDONLY) {
                assert_eq!(client.read(file.nodeid, open.fh, 0, 100).unwrap(), b"harmless");
                client.release(file.nodeid, open.fh);
                reached += 1;
            }
            client.forget(file.nodeid, 1);
        }
        client.forget(node, 1);
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(reached > 0, "the race was never won by the right side");
    assert_eq!(
        std::fs::read_dir(outside.path()).unwrap().count(),
        1,
        "nothing was made outside"
    );
}

#[test]
fn device_nodes_and_fifos_on_the_host_are_never_opened() {
    let (directory, mut client) = fixture();
    let path = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    for name in [c"fifo", c"socket"] {
        let node = client.lookup(FUSE_ROOT_ID, name).unwrap().nodeid;
        for how in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR | OFlags::NONBLOCK] {
            assert_eq!(client.open(node, how), Err(Errno::ACCESS));
        }
        let size = SetattrIn {
            valid: super::super::abi::FATTR_SIZE,
            ..SetattrIn::default()
        };
        assert_eq!(client.setattr(node, size), Err(Errno::ACCESS));
        let create = CreateIn {
            flags: 2,
            mode: 0o100_600,
            ..CreateIn::default()
        };
        assert_eq!(client.create_with(FUSE_ROOT_ID, name, create), Err(Errno::ACCESS));
    }
}

#[test]
fn requests_cut_short_have_no_effect() {
    let (directory, mut client) = fixture();
    for opcode in Opcode::ALL.iter().filter(|opcode| !opcode.is_silent()) {
        for len in 0..100 {
            let done = client.call(*opcode, FUSE_ROOT_ID, &vec![0; len], ROOM);
            if done.is_ok() && *opcode == Opcode::Destroy {
                client.init(ALL_FLAGS).unwrap();
            }
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    client.init(ALL_FLAGS).unwrap();
    client.getattr(FUSE_ROOT_ID).unwrap();
}

#[test]
fn header_that_lies_about_its_length_is_answered_with_an_error() {
    let (_directory, mut client) = fixture();
    for len in [0, 39, 41, 1000, u32::MAX] {
        let mut header = client.header(Opcode::Getattr as u32, FUSE_ROOT_ID, 0);
        header.len = len;
        let answer: OutHeader = parse(&client.exchange(&bytes(header), Some(ROOM)).unwrap());
        assert_eq!(
            (answer.error, answer.unique),
            (-Errno::INVAL.raw_os_error(), header.unique)
        );
    }
    // No header, or no room for an answer: the chain goes back empty, and is counted.
    let before = client.fs.state().mistakes;
    assert_eq!(client.exchange(&[1; 39], Some(ROOM)), None);
    let header = client.header(Opcode::Getattr as u32, FUSE_ROOT_ID, 0);
    assert_eq!(client.exchange(&bytes(header), None), None);
    assert_eq!(client.fs.state().mistakes, before + 2);
}

#[test]
fn answer_that_would_not_fit_is_refused_before_anything_is_done() {
    let (directory, mut client) = fixture();
    let args = with_name(
        CreateIn {
            flags: 2,
            mode: 0o100_600,
            ..CreateIn::default()
        },
        c"file",
    );
    assert_eq!(
        client.call(Opcode::Create, FUSE_ROOT_ID, &args, 143),
        Err(Errno::IO)
    );
    assert!(!directory.path().join("file").exists());
    assert_eq!(client.fs.holdings(), (1, 0, 0));
    let (file, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    assert_eq!(
        client.call(Opcode::Lookup, FUSE_ROOT_ID, b"file\0", 127),
        Err(Errno::IO)
    );
    let write = [
        bytes(WriteIn {
            fh,
            size: 1,
            ..WriteIn::default()
        })
        .as_slice(),
        b"x",
    ]
    .concat();
    assert_eq!(client.call(Opcode::Write, file.nodeid, &write, 7), Err(Errno::IO));
    assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"");
}

#[test]
fn write_that_lies_about_its_size_is_refused() {
    let (directory, mut client) = fixture();
    let (file, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    for size in [5, 1 << 20, u32::MAX] {
        let args = [
            bytes(WriteIn {
                fh,
                size,
                ..WriteIn::default()
            })
            .as_slice(),
            b"four",
        ]
        .concat();
        assert_eq!(
            client.call(Opcode::Write, file.nodeid, &args, ROOM),
            Err(Errno::INVAL)
        );
    }
    assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"");
}

/// Fields of requests: small numbers hit handles, nodes and modes; the rest are edges.
fn field() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..12,
        2 => Just(0o100_644),
        1 => Just(0o40_755),
        1 => 4000u64..4200,
        1 => Just(u64::from(u32::MAX)),
        1 => Just(i64::MAX.unsigned_abs()),
        1 => Just(u64::MAX),
    ]
}

fn tail() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(b"a\0".to_vec()),
        Just(b"b\0".to_vec()),
        Just(b"dir\0".to_vec()),
        Just(b"..\0".to_vec()),
        Just(b"../../canary\0".to_vec()),
        Just(b"user.x\0".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..24),
    ];
    proptest::collection::vec(name, 0..4).prop_map(|names| names.concat())
}

/// Mostly requests of the right shape: an opcode, fields as 32-bit halves or whole, names.
fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>, usize)> {
    let opcode = prop_oneof![20 => 1u32..54, 1 => any::<u32>()];
    let fields = proptest::collection::vec((field(), any::<bool>()), 0..8);
    let room = prop_oneof![4 => Just(8192usize), 1 => 0usize..300];
    (opcode, field(), fields, tail(), room).prop_map(|(opcode, node, fields, tail, room)| {
        let mut args = Vec::new();
        for (value, is_whole) in fields {
            if is_whole {
                value.put(&mut args)
            } else {
                ((value & 0xffff_ffff) as u32).put(&mut args)
            }
        }
        args.extend(tail);
        (opcode, node, args, room)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_is_answered_and_stays_inside(
        requests in proptest::collection::vec(request(), 1..60)
    ) {
        // Memory, where there is such a place: the guest may sync at will.
        let place = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let top = tempfile::tempdir_in(place.unwrap_or(&std::env::temp_dir())).unwrap();
        std::fs::write(top.path().join("canary"), "alive").unwrap();
        let root = top.path().join("outer/root");
        std::fs::create_dir_all(root.join("dir")).unwrap();
        std::fs::write(root.join("a"), "text").unwrap();
        std::os::unix::fs::symlink("../../canary", root.join("b")).unwrap();
        let mut client = Client::with(FsConfig { max_descriptors: Some(32), ..config(&root) });
        // Something to hold on to.
        let node = client.lookup(FUSE_ROOT_ID, c"a").unwrap().nodeid;
        client.open(node, OFlags::RDWR).unwrap();
        client.opendir(FUSE_ROOT_ID).unwrap();
        for (opcode, node, args, room) in requests {
            // Deleting the tree itself is the guest's right; a name of the file system is not.
            let header = client.header(opcode, node, args.len());
            let answer = client.exchange(&[bytes(header), args].concat(), Some(room));
            let is_silent = Opcode::from_wire(opcode).is_some_and(Opcode::is_silent);
            prop_assert_eq!(answer.is_none(), is_silent);
            if let Some(answer) = answer {
                prop_assert_eq!(parse::<OutHeader>(&answer).unique, header.unique);
                prop_assert_eq!(parse::<OutHeader>(&answer).len as usize, answer.len());
            }
            let (_, held, open) = client.fs.holdings();
            prop_assert!(held + open <= 32 + 12 && client.fs.args_held() <= 1 << 18);
        }
        prop_assert_eq!(std::fs::read(top.path().join("canary")).unwrap(), b"alive");
        prop_assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 2);
        prop_assert_eq!(std::fs::read_dir(top.path().join("outer")).unwrap().count(), 1);
    }

    #[test]
    fn arbitrary_bytes_are_answered_or_dropped(
        request in proptest::collection::vec(any::<u8>(), 1..400), room in proptest::option::of(0usize..400)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut client = Client::new(directory.path());
        if let Some(answer) = client.exchange(&request, room) {
            prop_assert_eq!(&answer[8..16], &request[8..16]);
        }
    }
}
