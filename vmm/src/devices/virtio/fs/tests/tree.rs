//! Names: links, renames, removals, files without a name.

use std::os::unix::fs::MetadataExt;

use super::super::wire::Rename2In;
use super::*;

fn rename2(client: &mut Client, from: &CStr, to: &CStr, flags: u32) -> Result<(), Errno> {
    let input = Rename2In {
        newdir: FUSE_ROOT_ID,
        flags,
        padding: 0,
    };
    let args = [
        bytes(input).as_slice(),
        from.to_bytes_with_nul(),
        to.to_bytes_with_nul(),
    ]
    .concat();
    client.call(Opcode::Rename2, FUSE_ROOT_ID, &args, 0).map(|_| ())
}

#[test]
fn hard_links_are_one_inode_and_its_references_are_counted() {
    let (directory, mut client) = fixture();
    let (first, _) = client.create(FUSE_ROOT_ID, c"one", 0o600);
    let second = client.link(first.nodeid, FUSE_ROOT_ID, c"two").unwrap();
    assert_eq!((second.nodeid, second.attr.nlink), (first.nodeid, 2));
    std::fs::hard_link(directory.path().join("one"), directory.path().join("three")).unwrap();
    let third = client.lookup(FUSE_ROOT_ID, c"three").unwrap();
    assert_eq!((third.nodeid, third.attr.nlink), (first.nodeid, 3));

    client.forget(first.nodeid, 2);
    assert!(
        client.getattr(first.nodeid).is_ok(),
        "one reference of three is left"
    );
    client.forget(first.nodeid, 1);
    assert_eq!(client.getattr(first.nodeid), Err(Errno::STALE));
    let anew = client.lookup(FUSE_ROOT_ID, c"one").unwrap();
    assert_ne!(anew.nodeid, first.nodeid, "ids are not used twice");
}

#[test]
fn forgetting_too_much_is_no_more_than_forgetting() {
    let (_directory, mut client) = fixture();
    let (file, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    client.forget(file.nodeid, u64::MAX);
    client.forget(file.nodeid, 1);
    client.forget(FUSE_ROOT_ID, u64::MAX);
    assert!(client.getattr(FUSE_ROOT_ID).is_ok(), "the root stays");
    assert_eq!(client.write(file.nodeid, fh, 0, b"open all the same"), Ok(17));
    let batch = [bytes(3u64), bytes(1u64), bytes(5u64), bytes(1u64), bytes(5u64)].concat();
    client.tell(Opcode::BatchForget, 0, &batch);
}

#[test]
fn batch_forget_forgets_each() {
    let (_directory, mut client) = fixture();
    let nodes = [c"a", c"b", c"c"].map(|name| client.mkdir(FUSE_ROOT_ID, name, 0o755).unwrap().nodeid);
    let mut batch = bytes(u64::from(3u32));
    for node in nodes {
        batch.extend([bytes(node), bytes(1u64)].concat());
    }
    client.tell(Opcode::BatchForget, 0, &batch);
    assert_eq!(client.fs.holdings(), (1, 0, 0));
}

#[test]
fn renames_move_replace_and_exchange() {
    let (directory, mut client) = fixture();
    let path = |name: &str| directory.path().join(name);
    let (a, _) = client.create(FUSE_ROOT_ID, c"a", 0o600);
    let (b, _) = client.create(FUSE_ROOT_ID, c"b", 0o600);
    let d = client.mkdir(FUSE_ROOT_ID, c"d", 0o755).unwrap();
    rename2(&mut client, c"a", c"b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(client.lookup(FUSE_ROOT_ID, c"a").unwrap().nodeid, b.nodeid);
    assert_eq!(client.lookup(FUSE_ROOT_ID, c"b").unwrap().nodeid, a.nodeid);
    assert_eq!(
        rename2(&mut client, c"a", c"b", libc::RENAME_NOREPLACE),
        Err(Errno::EXIST)
    );
    client.rename((FUSE_ROOT_ID, c"a"), (d.nodeid, c"c")).unwrap();
    assert!(path("d/c").exists() && !path("a").exists());
    assert_eq!(client.lookup(d.nodeid, c"c").unwrap().nodeid, b.nodeid);
    client.rename((d.nodeid, c"c"), (FUSE_ROOT_ID, c"b")).unwrap();
    assert_eq!(client.lookup(FUSE_ROOT_ID, c"b").unwrap().nodeid, b.nodeid);
    assert_eq!(
        client.getattr(a.nodeid).unwrap().attr.nlink,
        0,
        "replaced, and still in reach"
    );
    // A directory into itself.
    assert_eq!(
        client.rename((FUSE_ROOT_ID, c"d"), (d.nodeid, c"x")),
        Err(Errno::INVAL)
    );
}

#[test]
fn whiteouts_and_unknown_flags_are_refused() {
    let (directory, mut client) = fixture();
    client.create(FUSE_ROOT_ID, c"a", 0o600);
    for flags in [
        libc::RENAME_WHITEOUT,
        8,
        1 << 31,
        libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE,
    ] {
        assert_eq!(rename2(&mut client, c"a", c"b", flags), Err(Errno::INVAL));
    }
    assert!(directory.path().join("a").exists());
}

#[test]
fn links_say_where_they_point_and_are_not_followed() {
    let (directory, mut client) = fixture();
    let link = client.symlink(FUSE_ROOT_ID, c"link", c"/etc/passwd").unwrap();
    assert_eq!(
        std::fs::read_link(directory.path().join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        client.call(Opcode::Readlink, link.nodeid, &[], 4096).unwrap(),
        b"/etc/passwd"
    );
    assert_eq!(
        client.call(Opcode::Readlink, link.nodeid, &[], 4).unwrap(),
        b"/etc"
    );
    assert_eq!(
        client.call(Opcode::Readlink, FUSE_ROOT_ID, &[], 4096),
        Err(Errno::INVAL)
    );
    assert_eq!(client.open(link.nodeid, OFlags::RDONLY), Err(Errno::ACCESS));
    assert_eq!(client.lookup(link.nodeid, c"passwd"), Err(Errno::NOTDIR));
    // A second name for the link itself, not for its target.
    let second = client.link(link.nodeid, FUSE_ROOT_ID, c"again").unwrap();
    assert_eq!((second.nodeid, second.attr.nlink), (link.nodeid, 2));
}

#[test]
fn nodes_that_workloads_need_are_made_and_devices_are_not() {
    let (directory, mut client) = fixture();
    for (name, kind) in [
        (c"fifo", libc::S_IFIFO),
        (c"socket", libc::S_IFSOCK),
        (c"file", libc::S_IFREG),
    ] {
        let entry = client.mknod(FUSE_ROOT_ID, name, kind | 0o640, 0).unwrap();
        assert_eq!(entry.attr.mode, kind | 0o640);
        let opened = client.open(entry.nodeid, OFlags::RDONLY);
        assert_eq!(
            opened.is_ok(),
            kind == libc::S_IFREG,
            "special files are never opened"
        );
    }
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        // 0:0 is what overlay file systems take for a removed file.
        for device in [0, 0x0103] {
            assert_eq!(
                client.mknod(FUSE_ROOT_ID, c"dev", kind | 0o666, device),
                Err(Errno::PERM)
            );
        }
    }
    for kind in [libc::S_IFDIR, libc::S_IFLNK, 0] {
        assert_eq!(
            client.mknod(FUSE_ROOT_ID, c"dev", kind | 0o666, 0),
            Err(Errno::INVAL)
        );
    }
    assert!(!directory.path().join("dev").exists());
}

#[test]
fn create_opens_what_is_there_unless_it_must_be_new() {
    let (directory, mut client) = fixture();
    std::fs::write(directory.path().join("old"), "content").unwrap();
    let input = CreateIn {
        flags: flags(OFlags::RDWR | OFlags::CREATE),
        mode: 0o100_644,
        ..CreateIn::default()
    };
    let (entry, opened) = client.create_with(FUSE_ROOT_ID, c"old", input).unwrap();
    assert_eq!(client.read(entry.nodeid, opened.fh, 0, 100).unwrap(), b"content");
    let exclusive = CreateIn {
        flags: input.flags | flags(OFlags::EXCL),
        ..input
    };
    assert_eq!(
        client.create_with(FUSE_ROOT_ID, c"old", exclusive),
        Err(Errno::EXIST)
    );
    let truncating = CreateIn {
        flags: input.flags | flags(OFlags::TRUNC),
        ..input
    };
    client.create_with(FUSE_ROOT_ID, c"old", truncating).unwrap();
    assert_eq!(std::fs::read(directory.path().join("old")).unwrap(), b"");

    // What is there may be a link out of the tree, or a directory.
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join("trap")).unwrap();
    assert_eq!(
        client.create_with(FUSE_ROOT_ID, c"trap", truncating),
        Err(Errno::ACCESS)
    );
    std::fs::create_dir(directory.path().join("dir")).unwrap();
    assert_eq!(client.create_with(FUSE_ROOT_ID, c"dir", input), Err(Errno::ISDIR));
    let (inodes, ..) = client.fs.holdings();
    assert_eq!(inodes, 2, "references of refused requests are taken back");
}

#[test]
fn file_without_a_name_can_get_one() {
    let (directory, mut client) = fixture();
    let input = CreateIn {
        flags: flags(OFlags::RDWR),
        mode: 0o100_640,
        ..CreateIn::default()
    };
    let reply = client
        .call(Opcode::Tmpfile, FUSE_ROOT_ID, &with_name(input, c"#1"), ROOM)
        .unwrap();
    let (entry, opened): (EntryOut, OpenOut) = (parse(&reply), parse(&reply[EntryOut::SIZE..]));
    assert_eq!((entry.attr.nlink, entry.attr.mode), (0, 0o100_640));
    client
        .write(entry.nodeid, opened.fh, 0, b"born nameless")
        .unwrap();
    let linked = client.link(entry.nodeid, FUSE_ROOT_ID, c"named").unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (entry.nodeid, 1));
    assert_eq!(
        std::fs::read(directory.path().join("named")).unwrap(),
        b"born nameless"
    );
    assert_eq!(
        std::fs::metadata(directory.path().join("named")).unwrap().mode() & 0o7777,
        0o640
    );
}

#[test]
fn directories_are_removed_when_empty() {
    let (_directory, mut client) = fixture();
    let d = client.mkdir(FUSE_ROOT_ID, c"d", 0o755).unwrap();
    client.create(d.nodeid, c"file", 0o600);
    let rmdir = |client: &mut Client| client.call(Opcode::Rmdir, FUSE_ROOT_ID, c"d".to_bytes_with_nul(), 0);
    assert_eq!(rmdir(&mut client), Err(Errno::NOTEMPTY));
    assert_eq!(client.unlink(FUSE_ROOT_ID, c"d"), Err(Errno::ISDIR));
    client.unlink(d.nodeid, c"file").unwrap();
    rmdir(&mut client).unwrap();
    assert_eq!(
        client.getattr(d.nodeid).unwrap().attr.nlink,
        0,
        "as a working directory would see it"
    );
    assert_eq!(client.lookup(d.nodeid, c"file"), Err(Errno::NOENT));
}

#[test]
fn names_made_on_the_host_are_seen() {
    let (directory, mut client) = fixture();
    let (old, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    std::fs::write(directory.path().join("new"), "new").unwrap();
    std::fs::rename(directory.path().join("new"), directory.path().join("file")).unwrap();
    let new = client.lookup(FUSE_ROOT_ID, c"file").unwrap();
    assert_ne!(new.nodeid, old.nodeid);
    assert_eq!(client.getattr(old.nodeid).unwrap().attr.nlink, 0);
}
