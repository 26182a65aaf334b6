//! More inodes than descriptors.

use std::ffi::CString;

use super::*;

/// A server that may hold 64 descriptors, and `directories` times `files` files to look at.
fn tree(directories: usize, files: usize) -> (TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    for d in 0..directories {
        let path = directory.path().join(format!("d{d}"));
        std::fs::create_dir(&path).unwrap();
        for f in 0..files {
            std::fs::write(path.join(format!("f{f}")), format!("{d}/{f}")).unwrap();
        }
    }
    let client = Client::with(FsConfig {
        max_descriptors: Some(64),
        ..config(directory.path())
    });
    (directory, client)
}

fn name(letter: char, number: usize) -> CString {
    CString::new(format!("{letter}{number}")).unwrap()
}

/// Descriptors of this process that are open on something below `path`: other tests run beside this one.
fn descriptors_below(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    targets.filter(|target| target.starts_with(path)).count()
}

#[test]
fn ten_thousand_files_fit_into_64_descriptors() {
    visit_all(100);
}

#[test]
#[ignore = "takes a minute"]
fn hundred_thousand_files_fit_into_64_descriptors() {
    visit_all(1000);
}

/// Looks at 100 directories of `files` files each, reads all in another order, and forgets them.
fn visit_all(files: usize) {
    let (directory, mut client) = tree(100, files);
    let mut nodes = Vec::new();
    for d in 0..100 {
        let parent = client.lookup(FUSE_ROOT_ID, &name('d', d)).unwrap().nodeid;
        for f in 0..files {
            nodes.push((d, f, client.lookup(parent, &name('f', f)).unwrap().nodeid));
        }
        assert!(descriptors_below(directory.path()) <= 1 + 64);
    }
    assert_eq!(client.fs.holdings().0, 1 + 100 + 100 * files);
    // Every one is still what it was, wherever one looks first.
    for step in 0..nodes.len() {
        let (d, f, node) = nodes[step * 7919 % nodes.len()];
        let fh = client.open(node, OFlags::RDONLY).unwrap().fh;
        assert_eq!(
            client.read(node, fh, 0, 100).unwrap(),
            format!("{d}/{f}").as_bytes()
        );
        client.release(node, fh);
    }
    assert!(descriptors_below(directory.path()) <= 1 + 64);
    for (_, _, node) in nodes {
        client.forget(node, 1);
    }
    for d in 0..100 {
        let node = client.lookup(FUSE_ROOT_ID, &name('d', d)).unwrap().nodeid;
        client.forget(node, 2);
    }
    assert_eq!(client.fs.holdings(), (1, 0, 0));
    assert_eq!(descriptors_below(directory.path()), 1, "the root alone");
}

/// Looks at so much else that nothing of before keeps its descriptor.
fn push_out(client: &mut Client) {
    for d in 90..100 {
        let parent = client.lookup(FUSE_ROOT_ID, &name('d', d)).unwrap().nodeid;
        for f in 0..20 {
            client.lookup(parent, &name('f', f)).unwrap();
        }
    }
}

#[test]
fn what_the_guest_renames_is_followed() {
    let (_directory, mut client) = tree(100, 20);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let file = client.lookup(parent, c"f3").unwrap().nodeid;
    let other = client.lookup(parent, c"f4").unwrap().nodeid;
    push_out(&mut client);
    client.rename((parent, c"f3"), (FUSE_ROOT_ID, c"moved")).unwrap();
    push_out(&mut client);
    client
        .rename((FUSE_ROOT_ID, c"d0"), (FUSE_ROOT_ID, c"renamed"))
        .unwrap();
    push_out(&mut client);
    let read = |client: &mut Client, node| {
        let fh = client.open(node, OFlags::RDONLY)?.fh;
        let content = client.read(node, fh, 0, 10);
        client.release(node, fh);
        content
    };
    assert_eq!(read(&mut client, file).unwrap(), b"0/3");
    assert_eq!(read(&mut client, other).unwrap(), b"0/4");
}

#[test]
fn what_the_guest_removes_or_replaces_stays_in_reach() {
    let (_directory, mut client) = tree(100, 20);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let removed = client.lookup(parent, c"f1").unwrap().nodeid;
    let replaced = client.lookup(parent, c"f2").unwrap().nodeid;
    push_out(&mut client);
    client.unlink(parent, c"f1").unwrap();
    client.rename((parent, c"f3"), (parent, c"f2")).unwrap();
    push_out(&mut client);
    assert_eq!(client.getattr(removed).unwrap().attr.nlink, 0);
    assert_eq!(client.getattr(replaced).unwrap().attr.nlink, 0);
    let fh = client.open(replaced, OFlags::RDONLY).unwrap().fh;
    assert_eq!(client.read(replaced, fh, 0, 10).unwrap(), b"0/2");
}

#[test]
fn what_the_host_moves_away_is_stale_and_found_again() {
    let (directory, mut client) = tree(100, 20);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let file = client.lookup(parent, c"f1").unwrap().nodeid;
    push_out(&mut client);
    let at = |name: &str| directory.path().join(name);
    std::fs::rename(at("d0/f1"), at("d1/moved")).unwrap();
    std::fs::write(at("d0/f1"), "another").unwrap();
    assert_eq!(client.getattr(file), Err(Errno::STALE));
    let anew = client.lookup(parent, c"f1").unwrap();
    assert_ne!(anew.nodeid, file);
    assert_eq!(anew.attr.size, 7);
    let other = client.lookup(FUSE_ROOT_ID, c"d1").unwrap().nodeid;
    assert_eq!(
        client.lookup(other, c"moved").unwrap().nodeid,
        file,
        "identity is what counts"
    );
    assert_eq!(client.getattr(file).unwrap().attr.size, 3);
}

#[test]
fn link_in_the_place_of_a_directory_is_not_walked_through() {
    let (directory, mut client) = tree(100, 20);
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f1"), "secret").unwrap();
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let file = client.lookup(parent, c"f1").unwrap().nodeid;
    push_out(&mut client);
    std::fs::rename(directory.path().join("d0"), directory.path().join("old")).unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join("d0")).unwrap();
    assert_eq!(client.open(file, OFlags::RDONLY), Err(Errno::STALE));
    assert_eq!(client.lookup(parent, c"f1"), Err(Errno::STALE));
}

#[test]
fn open_files_have_their_own_limit() {
    let (directory, mut client) = tree(1, 100);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let mut opened = Vec::new();
    let refused = loop {
        let node = client.lookup(parent, &name('f', opened.len())).unwrap().nodeid;
        match client.open(node, OFlags::RDONLY) {
            Ok(open) => opened.push((node, open.fh)),
            Err(error) => break error,
        }
    };
    assert_eq!((opened.len(), refused), (42, Errno::NFILE), "two thirds of 64");
    assert!(descriptors_below(directory.path()) <= 1 + 64);
    assert_eq!(client.opendir(parent), Err(Errno::NFILE));
    for (node, fh) in opened {
        assert!(client.read(node, fh, 0, 1).is_ok());
        client.release(node, fh);
    }
    assert!(client.opendir(parent).is_ok());
}

#[test]
fn idle_descriptors_make_way_for_open_files() {
    let (directory, mut client) = tree(1, 100);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let nodes: Vec<_> = (0..100)
        .map(|f| client.lookup(parent, &name('f', f)).unwrap().nodeid)
        .collect();
    assert_eq!(client.fs.holdings().1, 64);
    for node in &nodes[60..] {
        client.open(*node, OFlags::RDONLY).unwrap();
    }
    assert!(descriptors_below(directory.path()) <= 1 + 64);
}

#[test]
fn hoarding_removed_files_is_stopped() {
    let (directory, mut client) = tree(1, 200);
    let parent = client.lookup(FUSE_ROOT_ID, c"d0").unwrap().nodeid;
    let mut refused = 0;
    for f in 0..200 {
        refused += usize::from(client.lookup(parent, &name('f', f)).is_err());
        refused += usize::from(client.unlink(parent, &name('f', f)).is_err());
    }
    assert!(refused > 0);
    assert!(descriptors_below(directory.path()) <= 1 + 64 + 64 / 8 + 8);
}
