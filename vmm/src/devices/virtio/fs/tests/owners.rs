//! Whose new inodes are, and with what mode. Other owners than the one who runs the test need root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::super::abi::{FATTR_GID, FATTR_MODE, FATTR_UID};
use super::*;

/// (user, group, permission bits) on the host.
fn on_host(path: &Path) -> (u32, u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn umask_of_the_caller_counts_and_that_of_the_server_does_not() {
    let (directory, mut client) = fixture();
    let input = CreateIn {
        flags: 2,
        mode: 0o100_666,
        umask: 0o027,
        ..CreateIn::default()
    };
    client.create_with(FUSE_ROOT_ID, c"file", input).unwrap();
    let args = with_name(
        MkdirIn {
            mode: 0o1777,
            umask: 0o002,
        },
        c"dir",
    );
    client.call(Opcode::Mkdir, FUSE_ROOT_ID, &args, ROOM).unwrap();
    let args = with_name(
        MknodIn {
            mode: libc::S_IFIFO | 0o777,
            umask: 0,
            ..MknodIn::default()
        },
        c"fifo",
    );
    client.call(Opcode::Mknod, FUSE_ROOT_ID, &args, ROOM).unwrap();
    let mode = |name: &str| on_host(&directory.path().join(name)).2;
    assert_eq!((mode("file"), mode("dir"), mode("fifo")), (0o640, 0o1775, 0o777));
}

#[test]
fn new_inodes_are_the_callers() {
    if skip_without_root("new_inodes_are_the_callers") {
        return;
    }
    let (directory, mut client) = fixture();
    (client.uid, client.gid) = (1234, 567);
    client.create(FUSE_ROOT_ID, c"file", 0o4755);
    client.mkdir(FUSE_ROOT_ID, c"dir", 0o750).unwrap();
    client
        .mknod(FUSE_ROOT_ID, c"fifo", libc::S_IFIFO | 0o622, 0)
        .unwrap();
    client
        .mknod(FUSE_ROOT_ID, c"plain", libc::S_IFREG | 0o2710, 0)
        .unwrap();
    let link = client.symlink(FUSE_ROOT_ID, c"link", c"target").unwrap();
    let args = with_name(
        CreateIn {
            flags: 2,
            mode: 0o100_640,
            ..CreateIn::default()
        },
        c"x",
    );
    let unnamed: EntryOut = parse(&client.call(Opcode::Tmpfile, FUSE_ROOT_ID, &args, ROOM).unwrap());
    let at = |name: &str| on_host(&directory.path().join(name));
    assert_eq!(
        at("file"),
        (1234, 567, 0o4755),
        "set-id bits survive the change of owner"
    );
    assert_eq!(at("dir"), (1234, 567, 0o750));
    assert_eq!(at("fifo"), (1234, 567, 0o622));
    assert_eq!(at("plain"), (1234, 567, 0o2710));
    assert_eq!((link.attr.uid, link.attr.gid), (1234, 567));
    assert_eq!((unnamed.attr.uid, unnamed.attr.gid), (1234, 567));
}

#[test]
fn set_group_id_directories_hand_their_group_down() {
    if skip_without_root("set_group_id_directories_hand_their_group_down") {
        return;
    }
    let (directory, mut client) = fixture();
    std::os::unix::fs::chown(directory.path(), None, Some(4321)).unwrap();
    set_mode(directory.path(), 0o2777);
    (client.uid, client.gid) = (1234, 567);
    client.create(FUSE_ROOT_ID, c"file", 0o640);
    let dir = client.mkdir(FUSE_ROOT_ID, c"dir", 0o750).unwrap();
    client.create(dir.nodeid, c"file", 0o640);
    let at = |name: &str| on_host(&directory.path().join(name));
    assert_eq!(at("file"), (1234, 4321, 0o640));
    assert_eq!(at("dir"), (1234, 4321, 0o2750));
    assert_eq!(at("dir/file"), (1234, 4321, 0o640));
}

#[test]
fn default_acl_takes_the_place_of_the_umask() {
    let (directory, mut client) = fixture();
    // user::rwx, group::rwx, other::r-x: little-endian version 2, then (tag, permissions, id) entries.
    let mut acl = bytes(2u32);
    for (tag, permissions) in [(0x01u16, 7u16), (0x04, 7), (0x20, 5)] {
        acl.extend([bytes(tag), bytes(permissions), bytes(u32::MAX)].concat());
    }
    let name = c"system.posix_acl_default";
    let set = |client: &mut Client| {
        // With FUSE_SETXATTR_EXT: size, flags, flags, padding.
        let head = [bytes(u32::try_from(acl.len()).unwrap()), bytes(0u32), bytes(0u64)].concat();
        let args = [head.as_slice(), name.to_bytes_with_nul(), &acl].concat();
        client.call(Opcode::Setxattr, FUSE_ROOT_ID, &args, 0)
    };
    match set(&mut client) {
        Err(Errno::OPNOTSUPP) => {
            return println!("skipped: no ACLs on the file system of the temporary directory");
        }
        done => done.unwrap(),
    };
    let input = CreateIn {
        flags: 2,
        mode: 0o100_666,
        umask: 0o077,
        ..CreateIn::default()
    };
    client.create_with(FUSE_ROOT_ID, c"file", input).unwrap();
    let args = with_name(
        MkdirIn {
            mode: 0o777,
            umask: 0o077,
        },
        c"dir",
    );
    client.call(Opcode::Mkdir, FUSE_ROOT_ID, &args, ROOM).unwrap();
    let mode = |name: &str| on_host(&directory.path().join(name)).2;
    assert_eq!((mode("file"), mode("dir")), (0o664, 0o775));

    client
        .call(Opcode::Removexattr, FUSE_ROOT_ID, name.to_bytes_with_nul(), 0)
        .unwrap();
    client.create_with(FUSE_ROOT_ID, c"later", input).unwrap();
    assert_eq!(mode("later"), 0o600);
}

#[test]
fn owner_and_mode_are_set_in_an_order_that_keeps_both() {
    if skip_without_root("owner_and_mode_are_set_in_an_order_that_keeps_both") {
        return;
    }
    let (directory, mut client) = fixture();
    let (entry, _) = client.create(FUSE_ROOT_ID, c"file", 0o755);
    let path = directory.path().join("file");
    let both = SetattrIn {
        valid: FATTR_UID | FATTR_MODE,
        uid: 55,
        mode: 0o4711,
        ..SetattrIn::default()
    };
    client.setattr(entry.nodeid, both).unwrap();
    assert_eq!(on_host(&path), (55, 0, 0o4711));
    let group = SetattrIn {
        valid: FATTR_GID,
        gid: 66,
        ..SetattrIn::default()
    };
    client.setattr(entry.nodeid, group).unwrap();
    assert_eq!(
        on_host(&path),
        (55, 66, 0o711),
        "a change of owner clears set-id bits"
    );
    let nobody = SetattrIn {
        valid: FATTR_UID,
        uid: u32::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(client.setattr(entry.nodeid, nobody), Err(Errno::INVAL));
    // Links have owners, too.
    let link = client.symlink(FUSE_ROOT_ID, c"link", c"file").unwrap();
    client
        .setattr(
            link.nodeid,
            SetattrIn {
                valid: FATTR_UID,
                uid: 77,
                ..SetattrIn::default()
            },
        )
        .unwrap();
    assert_eq!(
        (on_host(&directory.path().join("link")).0, on_host(&path).0),
        (77, 55)
    );
}

#[test]
fn what_cannot_be_given_to_the_caller_is_not_left_behind() {
    if is_root() {
        // Root may give to any id but -1.
        let (directory, mut client) = fixture();
        client.uid = u32::MAX;
        assert_eq!(client.mkdir(FUSE_ROOT_ID, c"dir", 0o755), Err(Errno::INVAL));
        let input = CreateIn {
            flags: 2,
            mode: 0o100_600,
            ..CreateIn::default()
        };
        assert_eq!(
            client.create_with(FUSE_ROOT_ID, c"file", input),
            Err(Errno::INVAL)
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    } else {
        let (directory, mut client) = fixture();
        client.uid = 0;
        assert_eq!(client.mkdir(FUSE_ROOT_ID, c"dir", 0o755), Err(Errno::PERM));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
