//! Extended attributes.

use super::super::wire::GetxattrSize;
use super::*;

fn set(client: &mut Client, node: u64, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    let size = u32::try_from(value.len()).unwrap();
    let head = [bytes(size), bytes(flags), bytes(0u64)].concat();
    let args = [head.as_slice(), name.to_bytes_with_nul(), value].concat();
    client.call(Opcode::Setxattr, node, &args, 0).map(|_| ())
}

fn get(client: &mut Client, node: u64, name: &CStr, size: u32) -> Result<Vec<u8>, Errno> {
    let args = with_name(GetxattrSize { size, padding: 0 }, name);
    client.call(Opcode::Getxattr, node, &args, size.max(8) as usize)
}

fn names(client: &mut Client, node: u64, size: u32) -> Result<Vec<u8>, Errno> {
    let args = bytes(GetxattrSize { size, padding: 0 });
    client.call(Opcode::Listxattr, node, &args, size.max(8) as usize)
}

fn remove(client: &mut Client, node: u64, name: &CStr) -> Result<(), Errno> {
    client
        .call(Opcode::Removexattr, node, name.to_bytes_with_nul(), 0)
        .map(|_| ())
}

#[test]
fn user_attributes_are_set_read_listed_and_removed() {
    let (_directory, mut client) = fixture();
    let (file, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    for node in [file.nodeid, FUSE_ROOT_ID] {
        match set(&mut client, node, c"user.one", b"value", 0) {
            Err(Errno::OPNOTSUPP) => {
                return println!("skipped: no user attributes in the temporary directory");
            }
            done => done.unwrap(),
        }
        set(&mut client, node, c"user.two", b"", 0).unwrap();
        assert_eq!(get(&mut client, node, c"user.one", 100).unwrap(), b"value");
        assert_eq!(get(&mut client, node, c"user.one", 0).unwrap(), bytes(5u64));
        assert_eq!(get(&mut client, node, c"user.one", 4), Err(Errno::RANGE));
        assert_eq!(get(&mut client, node, c"user.two", 0).unwrap(), bytes(0u64));
        assert_eq!(get(&mut client, node, c"user.none", 10), Err(Errno::NODATA));
        let mut listed: Vec<_> = names(&mut client, node, 100).unwrap();
        listed.sort_unstable();
        let mut expected = b"user.one\0user.two\0".to_vec();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        assert_eq!(names(&mut client, node, 0).unwrap(), bytes(18u64));
        assert_eq!(names(&mut client, node, 17), Err(Errno::RANGE));
        assert_eq!(
            set(&mut client, node, c"user.one", b"x", 1),
            Err(Errno::EXIST),
            "XATTR_CREATE"
        );
        assert_eq!(
            set(&mut client, node, c"user.none", b"x", 2),
            Err(Errno::NODATA),
            "XATTR_REPLACE"
        );
        remove(&mut client, node, c"user.one").unwrap();
        assert_eq!(get(&mut client, node, c"user.one", 100), Err(Errno::NODATA));
    }
}

#[test]
fn attributes_that_mean_something_to_the_host_are_refused() {
    let (_directory, mut client) = fixture();
    let (file, _) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // cap_net_bind_service=p
    for name in [
        c"security.capability",
        c"security.selinux",
        c"security.ima",
        c"trusted.overlay.opaque",
        c"system.nfs4_acl",
        c"userx.name",
        c"",
    ] {
        assert_eq!(
            set(&mut client, file.nodeid, name, &capability, 0),
            Err(Errno::OPNOTSUPP),
            "{name:?}"
        );
        assert_eq!(remove(&mut client, file.nodeid, name), Err(Errno::OPNOTSUPP));
        assert_eq!(get(&mut client, file.nodeid, name, 100), Err(Errno::NODATA));
    }
}

#[test]
fn file_capabilities_pass_by_rule() {
    if skip_without_root("file_capabilities_pass_by_rule") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = c"security.capability";
    let mut client = Client::with(FsConfig {
        file_capabilities: true,
        ..config(directory.path())
    });
    let (file, _) = client.create(FUSE_ROOT_ID, c"file", 0o755);
    set(&mut client, file.nodeid, name, &capability, 0).unwrap();
    assert_eq!(get(&mut client, file.nodeid, name, 100).unwrap(), capability);
    assert_eq!(
        names(&mut client, file.nodeid, 100).unwrap(),
        b"security.capability\0"
    );

    let mut other = Client::new(directory.path());
    let file = other.lookup(FUSE_ROOT_ID, c"file").unwrap();
    assert_eq!(
        names(&mut other, file.nodeid, 100).unwrap(),
        b"",
        "hidden without the rule"
    );
}

#[test]
fn links_and_special_files_have_none_and_are_not_opened() {
    let (_directory, mut client) = fixture();
    let link = client
        .symlink(FUSE_ROOT_ID, c"link", c"/etc/passwd")
        .unwrap()
        .nodeid;
    let fifo = client
        .mknod(FUSE_ROOT_ID, c"fifo", libc::S_IFIFO | 0o600, 0)
        .unwrap()
        .nodeid;
    for node in [link, fifo] {
        assert_eq!(set(&mut client, node, c"user.one", b"x", 0), Err(Errno::PERM));
        assert_eq!(get(&mut client, node, c"user.one", 10), Err(Errno::NODATA));
        assert_eq!(names(&mut client, node, 10).unwrap(), b"");
    }
}

#[test]
fn setting_an_acl_clears_the_group_bit_when_asked() {
    let (_directory, mut client) = fixture();
    let (file, _) = client.create(FUSE_ROOT_ID, c"file", 0o2755);
    let mut acl = bytes(2u32);
    for (tag, permissions) in [(0x01u16, 7u16), (0x04, 5), (0x20, 5)] {
        acl.extend([bytes(tag), bytes(permissions), bytes(u32::MAX)].concat());
    }
    let size = u32::try_from(acl.len()).unwrap();
    let head = [bytes(size), bytes(0u32), bytes(1u32), bytes(0u32)].concat();
    let args = [
        head.as_slice(),
        c"system.posix_acl_access".to_bytes_with_nul(),
        &acl,
    ]
    .concat();
    match client.call(Opcode::Setxattr, file.nodeid, &args, 0) {
        Err(Errno::OPNOTSUPP) => return println!("skipped: no ACLs in the temporary directory"),
        done => done.unwrap(),
    };
    assert_eq!(client.getattr(file.nodeid).unwrap().attr.mode & 0o7777, 0o755);
}

#[test]
fn lengths_that_lie_are_refused() {
    let (_directory, mut client) = fixture();
    let head = [bytes(1000u32), bytes(0u32), bytes(0u64)].concat();
    let args = [head.as_slice(), c"user.one".to_bytes_with_nul(), b"short"].concat();
    assert_eq!(
        client.call(Opcode::Setxattr, FUSE_ROOT_ID, &args, 0),
        Err(Errno::INVAL)
    );
    let head = [bytes(u32::MAX), bytes(0u32), bytes(0u64)].concat();
    let args = [head.as_slice(), c"user.one".to_bytes_with_nul()].concat();
    assert_eq!(
        client.call(Opcode::Setxattr, FUSE_ROOT_ID, &args, 0),
        Err(Errno::TOOBIG)
    );
    let args = with_name(
        GetxattrSize {
            size: u32::MAX,
            padding: 0,
        },
        c"user.one",
    );
    assert_eq!(
        client.call(Opcode::Getxattr, FUSE_ROOT_ID, &args, 100),
        Err(Errno::NODATA)
    );
}
