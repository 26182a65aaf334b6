//! Directory listings.

use std::collections::HashSet;

use super::super::wire::Dirent;
use super::*;

/// One listed entry: name, cookie after it, and with READDIRPLUS what LOOKUP would say.
struct Listed {
    name: Vec<u8>,
    next: u64,
    entry: Option<EntryOut>,
}

fn list(
    client: &mut Client,
    node: u64,
    fh: u64,
    offset: u64,
    size: u32,
    plus: bool,
) -> Result<Vec<Listed>, Errno> {
    let opcode = if plus {
        Opcode::Readdirplus
    } else {
        Opcode::Readdir
    };
    let args = bytes(ReadIn {
        fh,
        offset,
        size,
        ..ReadIn::default()
    });
    let reply = client.call(opcode, node, &args, size as usize)?;
    assert!(reply.len() <= size as usize);
    let mut rest = reply.as_slice();
    let mut listed = Vec::new();
    while !rest.is_empty() {
        let entry = plus.then(|| EntryOut::take(&mut rest).unwrap());
        let dirent = Dirent::take(&mut rest).unwrap();
        let (name, more) = rest.split_at(dirent.namelen as usize);
        listed.push(Listed {
            name: name.to_vec(),
            next: dirent.off,
            entry,
        });
        rest = &more[(8 - name.len() % 8) % 8..];
    }
    Ok(listed)
}

/// The whole directory, in requests of one page as the guest's kernel makes them.
fn list_all(client: &mut Client, node: u64, plus: bool) -> Vec<Listed> {
    let fh = client.opendir(node).unwrap().fh;
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |last| last.next);
        let page = list(client, node, fh, offset, 4096, plus).unwrap();
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    client.release(node, fh);
    all
}

fn fill(path: &Path, count: usize) {
    for i in 0..count {
        std::fs::write(path.join(format!("file-{i:05}")), "").unwrap();
    }
}

#[test]
fn large_directory_is_listed_once_each_with_cookies_that_hold() {
    let (directory, mut client) = fixture();
    fill(directory.path(), 20_000);
    let all = list_all(&mut client, FUSE_ROOT_ID, false);
    let names: HashSet<_> = all.iter().map(|listed| listed.name.clone()).collect();
    assert_eq!((all.len(), names.len()), (20_002, 20_002), "with . and ..");

    // Go back to some cookies, on a new handle, after files before and behind were removed.
    for i in 0..100 {
        std::fs::remove_file(directory.path().join(format!("file-{:05}", i * 199))).unwrap();
    }
    let fh = client.opendir(FUSE_ROOT_ID).unwrap().fh;
    for at in [19_000, 7, 12_345] {
        let next = list(&mut client, FUSE_ROOT_ID, fh, all[at].next, 4096, false).unwrap();
        let expected = all[at + 1..].iter().find(|listed| {
            use std::os::unix::ffi::OsStrExt;
            directory
                .path()
                .join(std::ffi::OsStr::from_bytes(&listed.name))
                .exists()
        });
        assert_eq!(next[0].name, expected.unwrap().name);
    }
}

#[test]
fn listing_with_attributes_counts_one_reference_each() {
    let (directory, mut client) = fixture();
    fill(directory.path(), 1000);
    let all = list_all(&mut client, FUSE_ROOT_ID, true);
    assert_eq!(all.len(), 1002);
    assert_eq!(
        client.fs.holdings(),
        (1001, 0, 0),
        "no descriptor for what is only listed"
    );
    for listed in &all {
        let entry = listed.entry.unwrap();
        if listed.name.starts_with(b".") {
            assert_eq!(entry.nodeid, 0);
            continue;
        }
        let name = std::ffi::CString::new(listed.name.clone()).unwrap();
        assert_eq!(client.lookup(FUSE_ROOT_ID, &name).unwrap().nodeid, entry.nodeid);
        client.forget(entry.nodeid, 1);
        assert!(
            client.getattr(entry.nodeid).is_ok(),
            "the LOOKUP's reference is left"
        );
        client.forget(entry.nodeid, 1);
    }
    assert_eq!(client.fs.holdings(), (1, 0, 0));
}

#[test]
fn only_what_fits_is_listed_and_counted() {
    let (directory, mut client) = fixture();
    fill(directory.path(), 10);
    let fh = client.opendir(FUSE_ROOT_ID).unwrap().fh;
    // 128 + 24 + 10 bytes of name, padded to 168: `.` and `..` take 160 each.
    let mut offset = 0;
    let mut seen = 0;
    loop {
        let page = list(&mut client, FUSE_ROOT_ID, fh, offset, 350, true).unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        offset = last.next;
        seen += page
            .iter()
            .filter(|listed| listed.entry.unwrap().nodeid != 0)
            .count();
        assert_eq!(client.fs.holdings().0, 1 + seen);
    }
    assert_eq!(seen, 10);
    assert!(
        list(&mut client, FUSE_ROOT_ID, fh, 0, 100, true).is_err(),
        "not even one fits"
    );
}

#[test]
fn rewinding_shows_what_is_new() {
    let (directory, mut client) = fixture();
    let fh = client.opendir(FUSE_ROOT_ID).unwrap().fh;
    assert_eq!(
        list(&mut client, FUSE_ROOT_ID, fh, 0, 4096, false).unwrap().len(),
        2
    );
    fill(directory.path(), 1);
    assert_eq!(
        list(&mut client, FUSE_ROOT_ID, fh, 0, 4096, false).unwrap().len(),
        3
    );
}

#[test]
fn files_are_no_directories() {
    let (_directory, mut client) = fixture();
    let (entry, fh) = client.create(FUSE_ROOT_ID, c"file", 0o600);
    assert_eq!(client.opendir(entry.nodeid), Err(Errno::NOTDIR));
    assert!(matches!(
        list(&mut client, entry.nodeid, fh, 0, 4096, false),
        Err(Errno::BADF)
    ));
    let fh = client.opendir(FUSE_ROOT_ID).unwrap().fh;
    assert!(matches!(
        list(&mut client, entry.nodeid, fh, 0, 4096, false),
        Err(Errno::BADF)
    ));
    assert_eq!(client.write(FUSE_ROOT_ID, fh, 0, b"x"), Err(Errno::BADF));
}
