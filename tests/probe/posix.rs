//! POSIX semantics of the file system that a folder is on: a line `name=ok` or `name=what went wrong` for each.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::posix_files as files;

pub type Checked = Result<(), String>;
type Check = (&'static str, fn(&Path) -> Checked);

const CHECKS: &[Check] = &[
    ("hard_links", hard_links),
    ("symbolic_links", symbolic_links),
    ("rename_replaces", rename_replaces),
    ("rename_of_folders", rename_of_folders),
    ("rename_noreplace_and_exchange", rename_flags),
    ("unlinked_file_stays_readable", unlinked_file),
    ("folder_listing", folder_listing),
    ("errors", errors),
    ("modes_and_owners", modes_and_owners),
    ("times", times),
    ("append", append),
    ("extended_attributes", files::extended_attributes),
    ("record_locks", files::record_locks),
    ("whole_file_locks", files::whole_file_locks),
    ("o_tmpfile", files::o_tmpfile),
    ("sparse_files", files::sparse_files),
    ("allocation", files::allocation),
    ("copy_file_range", files::copy_file_range),
    ("fifo", files::fifo),
    ("sync", files::sync),
];

/// Runs every check in a folder of its own below `root`; the status is 1 when one of them failed.
#[expect(clippy::print_stdout, reason = "its output is what it is for")]
pub fn check(root: &Path) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for (name, check) in CHECKS {
        let folder = root.join(name);
        let result = fs::create_dir(&folder)
            .map_err(|e| e.to_string())
            .and_then(|()| check(&folder));
        let result = result.and_then(|()| fs::remove_dir_all(&folder).map_err(|e| format!("removing: {e}")));
        match result {
            Ok(()) => println!("{name}=ok"),
            Err(e) => {
                println!("{name}={e}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

/// An error of the system with what was done.
pub fn doing<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// The claim, when it does not hold.
pub fn claim(what: &str, holds: bool) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(format!("not so: {what}"))
    }
}

fn hard_links(at: &Path) -> Checked {
    let (one, two) = (at.join("one"), at.join("two"));
    doing("write", fs::write(&one, "x"))?;
    doing("link", fs::hard_link(&one, &two))?;
    let (a, b) = (
        doing("stat", fs::metadata(&one))?,
        doing("stat", fs::metadata(&two))?,
    );
    claim(
        "both names are one inode",
        a.ino() == b.ino() && a.dev() == b.dev(),
    )?;
    claim("two links", a.nlink() == 2 && b.nlink() == 2)?;
    doing("write by the second name", fs::write(&two, "yy"))?;
    claim("seen by the first name", doing("read", fs::read(&one))? == b"yy")?;
    doing("unlink", fs::remove_file(&one))?;
    claim(
        "one link is left",
        doing("stat", fs::metadata(&two))?.nlink() == 1,
    )
}

fn symbolic_links(at: &Path) -> Checked {
    let link = at.join("link");
    doing("symlink", symlink("target", &link))?;
    claim(
        "readlink gives the text",
        doing("readlink", fs::read_link(&link))? == Path::new("target"),
    )?;
    claim("dangling", fs::read(&link).is_err())?;
    doing("write through", fs::write(&link, "z"))?;
    claim(
        "the target was made",
        doing("read", fs::read(at.join("target")))? == b"z",
    )?;
    doing("symlink to itself", symlink("loop", at.join("loop")))?;
    claim(
        "a loop is ELOOP",
        raw(&fs::read(at.join("loop"))) == Some(Errno::LOOP),
    )
}

fn rename_replaces(at: &Path) -> Checked {
    let (old, new) = (at.join("old"), at.join("new"));
    doing("write", fs::write(&old, "old"))?;
    doing("write", fs::write(&new, "new"))?;
    let mut held = doing("open", File::open(&new))?;
    doing("rename", fs::rename(&old, &new))?;
    claim(
        "the new name has the old content",
        doing("read", fs::read(&new))? == b"old",
    )?;
    claim("the old name is gone", !old.exists())?;
    let mut text = String::new();
    doing("read what was replaced", held.read_to_string(&mut text))?;
    claim("the replaced file is still open", text == "new")
}

fn rename_of_folders(at: &Path) -> Checked {
    doing("mkdir", fs::create_dir_all(at.join("a/b")))?;
    doing("write", fs::write(at.join("a/b/f"), "f"))?;
    doing("rename", fs::rename(at.join("a"), at.join("c")))?;
    claim(
        "content moved along",
        doing("read", fs::read(at.join("c/b/f")))? == b"f",
    )?;
    let across = fs::rename(at.join("c/b"), at.join("b"));
    doing("rename across folders", across)?;
    claim(
        "into itself is EINVAL",
        raw(&fs::rename(at.join("b"), at.join("b/x"))) == Some(Errno::INVAL),
    )?;
    claim("over a filled folder is ENOTEMPTY", {
        doing("mkdir", fs::create_dir(at.join("empty")))?;
        raw(&fs::rename(at.join("empty"), at.join("b"))) == Some(Errno::NOTEMPTY)
    })
}

fn rename_flags(at: &Path) -> Checked {
    let (one, two) = (at.join("one"), at.join("two"));
    doing("write", fs::write(&one, "1"))?;
    doing("write", fs::write(&two, "2"))?;
    let refused = renameat_with(CWD, &one, CWD, &two, RenameFlags::NOREPLACE);
    claim("NOREPLACE is EEXIST", refused == Err(Errno::EXIST))?;
    let exchanged = renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE);
    doing("EXCHANGE", exchanged.map_err(Into::into))?;
    claim(
        "exchanged",
        doing("read", fs::read(&one))? == b"2" && doing("read", fs::read(&two))? == b"1",
    )
}

fn unlinked_file(at: &Path) -> Checked {
    let path = at.join("f");
    let mut file = doing(
        "open",
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path),
    )?;
    doing("write", file.write_all(b"still here"))?;
    doing("unlink", fs::remove_file(&path))?;
    claim("no link is left", doing("fstat", file.metadata())?.nlink() == 0)?;
    doing("seek", file.seek(SeekFrom::Start(0)))?;
    let mut text = String::new();
    doing("read", file.read_to_string(&mut text))?;
    claim("readable", text == "still here")
}

fn folder_listing(at: &Path) -> Checked {
    const MANY: usize = 700; // more than one buffer of getdents holds
    for n in 0..MANY {
        doing(
            "create",
            File::create(at.join(format!("a-name-of-some-length-{n}"))),
        )?;
    }
    let mut seen: Vec<_> = doing("readdir", fs::read_dir(at))?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    seen.sort();
    seen.dedup();
    claim("each name once", seen.len() == MANY)?;
    for entry in doing("readdir", fs::read_dir(at))?.flatten() {
        doing("remove while reading", fs::remove_file(entry.path()))?;
    }
    claim("empty", doing("readdir", fs::read_dir(at))?.next().is_none())
}

fn errors(at: &Path) -> Checked {
    let file = at.join("f");
    doing("create", File::create_new(&file))?;
    claim("EEXIST", raw(&File::create_new(&file)) == Some(Errno::EXIST))?;
    claim("ENOENT", raw(&File::open(at.join("none"))) == Some(Errno::NOENT))?;
    claim("ENOTDIR", raw(&File::open(file.join("x"))) == Some(Errno::NOTDIR))?;
    claim(
        "EISDIR",
        raw(&OpenOptions::new().write(true).open(at)) == Some(Errno::ISDIR),
    )?;
    claim(
        "ENAMETOOLONG",
        raw(&File::create(at.join("n".repeat(256)))) == Some(Errno::NAMETOOLONG),
    )?;
    doing("a name of 255 bytes", File::create(at.join("n".repeat(255))))?;
    claim("ENOTEMPTY", raw(&fs::remove_dir(at)) == Some(Errno::NOTEMPTY))
}

fn modes_and_owners(at: &Path) -> Checked {
    let file = at.join("f");
    doing("write", fs::write(&file, "x"))?;
    doing("chown", chown(&file, Some(1234), Some(5678)))?;
    doing(
        "chmod",
        fs::set_permissions(&file, Permissions::from_mode(0o6751)),
    )?;
    let meta = doing("stat", fs::metadata(&file))?;
    claim("owner and group", (meta.uid(), meta.gid()) == (1234, 5678))?;
    claim("all twelve bits", meta.mode() & 0o7777 == 0o6751)?;
    let folder = at.join("shared");
    doing("mkdir", fs::create_dir(&folder))?;
    doing("chown", chown(&folder, None, Some(4321)))?;
    doing(
        "chmod",
        fs::set_permissions(&folder, Permissions::from_mode(0o2777)),
    )?;
    doing("write", fs::write(folder.join("g"), ""))?;
    let inherited = doing("stat", fs::metadata(folder.join("g")))?;
    claim(
        "a set-group-id folder hands down its group",
        inherited.gid() == 4321,
    )
}

fn times(at: &Path) -> Checked {
    let path = at.join("f");
    let file = doing("create", File::create(&path))?;
    let moment = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    doing(
        "utimens",
        file.set_times(fs::FileTimes::new().set_modified(moment).set_accessed(moment)),
    )?;
    claim(
        "to the nanosecond",
        doing("stat", fs::metadata(&path))?.modified().ok() == Some(moment),
    )?;
    doing("write", (&file).write_all(b"x"))?;
    drop(file);
    claim(
        "writing moves it",
        doing("stat", fs::metadata(&path))?
            .modified()
            .is_ok_and(|now| now > moment),
    )
}

fn append(at: &Path) -> Checked {
    let path = at.join("f");
    let open = || doing("open", OpenOptions::new().append(true).create(true).open(&path));
    let (mut one, mut two) = (open()?, open()?);
    for n in 0..50 {
        doing(
            "append",
            if n % 2 == 0 {
                one.write_all(b"1")
            } else {
                two.write_all(b"2")
            },
        )?;
    }
    claim(
        "no writer overwrote the other",
        doing("read", fs::read(&path))? == b"12".repeat(25),
    )?;
    let file = doing("open", OpenOptions::new().write(true).open(&path))?;
    doing("truncate", file.set_len(10))?;
    doing("pwrite", file.write_all_at(b"x", 19).map(|()| drop(file)))?;
    let text = doing("read", fs::read(&path))?;
    claim(
        "the gap reads as zeros",
        text.len() == 20 && text[10..19].iter().all(|b| *b == 0),
    )
}

fn raw<T>(result: &io::Result<T>) -> Option<Errno> {
    result.as_ref().err().and_then(Errno::from_io_error)
}
