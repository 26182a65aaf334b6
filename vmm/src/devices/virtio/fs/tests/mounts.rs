//! Mounts below the exported root. Each test makes a mount namespace for its thread alone; that needs
//! root.
#![expect(unsafe_code, reason = "unshare is only offered as a raw call")]

use std::process::Command;

use super::super::abi::FUSE_ATTR_SUBMOUNT;
use super::*;

/// Runs `test` in a thread with mounts of its own, or says why not.
fn with_own_mounts(name: &str, test: impl FnOnce() + Send + 'static) {
    if skip_without_root(name) {
        return;
    }
    let thread = std::thread::spawn(move || {
        // SAFETY: takes no pointers; the new mount namespace and working directory are this thread's only.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
        mount(&["--make-rprivate", "/"]);
        test();
    });
    thread.join().unwrap();
}

fn mount(args: &[&str]) {
    assert!(
        Command::new("mount").args(args).status().unwrap().success(),
        "mount {args:?}"
    );
}

/// A cell: `/rootfs` and `/volumes/0` mounts, `/volumes/1` a bind mount of a file.
fn cell() -> TempDir {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    for name in [
        "root",
        "root/rootfs",
        "root/volumes",
        "root/volumes/0",
        "image",
        "image/etc",
        "data",
    ] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("root/volumes/1"), "").unwrap();
    std::fs::write(at("image/etc/passwd"), "root").unwrap();
    std::fs::write(at("data/file"), "volume").unwrap();
    let bind =
        |from: &str, to: &str| mount(&["--bind", at(from).to_str().unwrap(), at(to).to_str().unwrap()]);
    bind("image", "root/rootfs");
    bind("data", "root/volumes/0");
    bind("data/file", "root/volumes/1");
    top
}

#[test]
fn submounts_are_announced_and_kept_apart() {
    with_own_mounts("submounts_are_announced_and_kept_apart", || {
        let top = cell();
        let mut client = Client::new(&top.path().join("root"));
        let rootfs = client.lookup(FUSE_ROOT_ID, c"rootfs").unwrap();
        assert_eq!(rootfs.attr.flags, FUSE_ATTR_SUBMOUNT);
        assert_eq!(client.walk(&[c"rootfs", c"etc"]).unwrap().attr.flags, 0);
        let volumes = client.lookup(FUSE_ROOT_ID, c"volumes").unwrap();
        assert_eq!(volumes.attr.flags, 0);
        let volume = client.lookup(volumes.nodeid, c"0").unwrap();
        assert_eq!(volume.attr.flags, FUSE_ATTR_SUBMOUNT);

        // The same file through two mounts is two inodes; a file is never announced as a mount.
        let in_volume = client.lookup(volume.nodeid, c"file").unwrap();
        let alone = client.lookup(volumes.nodeid, c"1").unwrap();
        assert_eq!((alone.attr.ino, alone.attr.flags), (in_volume.attr.ino, 0));
        assert_ne!(alone.nodeid, in_volume.nodeid);

        let etc = client.walk(&[c"rootfs", c"etc"]).unwrap().nodeid;
        let across = client.rename((etc, c"passwd"), (volume.nodeid, c"passwd"));
        assert_eq!(across, Err(Errno::XDEV));
        assert_eq!(client.link(in_volume.nodeid, etc, c"file"), Err(Errno::XDEV));
        client.link(in_volume.nodeid, volume.nodeid, c"again").unwrap();
        assert_eq!(client.unlink(volumes.nodeid, c"1"), Err(Errno::BUSY));
        client.create(volume.nodeid, c"new", 0o600);
        assert!(top.path().join("data/new").exists());
    });
}

#[test]
fn guest_that_does_not_know_submounts_is_not_told() {
    with_own_mounts("guest_that_does_not_know_submounts_is_not_told", || {
        let top = cell();
        let mut client = Client::unconnected(config(&top.path().join("root")));
        client.init(0).unwrap();
        assert_eq!(client.lookup(FUSE_ROOT_ID, c"rootfs").unwrap().attr.flags, 0);
    });
}

#[test]
fn mounts_that_come_later_are_found_and_reopened() {
    with_own_mounts("mounts_that_come_later_are_found_and_reopened", || {
        let top = cell();
        let root = top.path().join("root");
        let mut client = Client::with(FsConfig {
            max_descriptors: Some(16),
            ..config(&root)
        });
        std::fs::create_dir(root.join("volumes/2")).unwrap();
        let before = client.walk(&[c"volumes", c"2"]).unwrap();
        mount(&["-t", "tmpfs", "none", root.join("volumes/2").to_str().unwrap()]);
        let after = client.walk(&[c"volumes", c"2"]).unwrap();
        assert_ne!(after.nodeid, before.nodeid);
        assert_eq!(after.attr.flags, FUSE_ATTR_SUBMOUNT);
        let (file, fh) = client.create(after.nodeid, c"file", 0o600);
        client.write(file.nodeid, fh, 0, b"on tmpfs").unwrap();
        client.release(file.nodeid, fh);
        for i in 0..100 {
            let name = std::ffi::CString::new(format!("d{i}")).unwrap();
            client.mkdir(FUSE_ROOT_ID, &name, 0o755).unwrap();
        }
        let fh = client.open(file.nodeid, OFlags::RDONLY).unwrap().fh;
        assert_eq!(client.read(file.nodeid, fh, 0, 100).unwrap(), b"on tmpfs");
    });
}

#[test]
fn read_only_mounts_are_read_only() {
    with_own_mounts("read_only_mounts_are_read_only", || {
        let top = cell();
        let volume = top.path().join("root/volumes/0");
        mount(&["-o", "remount,bind,ro", volume.to_str().unwrap()]);
        let mut client = Client::new(&top.path().join("root"));
        let node = client.walk(&[c"volumes", c"0"]).unwrap().nodeid;
        let file = client.lookup(node, c"file").unwrap().nodeid;
        assert_eq!(client.open(file, OFlags::RDWR), Err(Errno::ROFS));
        assert_eq!(client.mkdir(node, c"dir", 0o755), Err(Errno::ROFS));
        assert_eq!(client.unlink(node, c"file"), Err(Errno::ROFS));
        assert!(client.open(file, OFlags::RDONLY).is_ok());
    });
}

#[test]
fn files_copied_up_by_overlayfs_stay_the_same_inodes() {
    with_own_mounts("files_copied_up_by_overlayfs_stay_the_same_inodes", || {
        let top = tempfile::tempdir().unwrap();
        // Layers on one tmpfs, as overlayfs keeps inode numbers then.
        mount(&["-t", "tmpfs", "none", top.path().to_str().unwrap()]);
        for name in ["lower", "lower/dir", "upper", "work", "root"] {
            std::fs::create_dir(top.path().join(name)).unwrap();
        }
        std::fs::write(top.path().join("lower/dir/file"), "lower").unwrap();
        let t = top.path().to_str().unwrap();
        let layers = format!("lowerdir={t}/lower,upperdir={t}/upper,workdir={t}/work");
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "-o", &layers, "none", &format!("{t}/root")])
            .status();
        if !mounted.unwrap().success() {
            return println!("skipped: no overlayfs on this kernel");
        }
        let root = top.path().join("root");
        let mut client = Client::with(FsConfig {
            max_descriptors: Some(16),
            ..config(&root)
        });
        let dir = client.lookup(FUSE_ROOT_ID, c"dir").unwrap().nodeid;
        let file = client.lookup(dir, c"file").unwrap().nodeid;
        let fh = client.open(file, OFlags::WRONLY).unwrap().fh;
        client.write(file, fh, 0, b"UPPER").unwrap();
        client.release(file, fh);
        for i in 0..100 {
            let name = std::ffi::CString::new(format!("d{i}")).unwrap();
            client.mkdir(FUSE_ROOT_ID, &name, 0o755).unwrap();
        }
        let fh = client.open(file, OFlags::RDONLY).unwrap().fh;
        assert_eq!(client.read(file, fh, 0, 100).unwrap(), b"UPPER");
        assert_eq!(client.lookup(dir, c"file").unwrap().nodeid, file);
    });
}
