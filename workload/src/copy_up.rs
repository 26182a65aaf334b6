//! Option `tmpcopyup`: a new tmpfs begins with what the image holds at its place. Contents, modes,
//! owners and times are kept, extended attributes and hard links are not; sockets are left out.

use std::{fs::File, io, os::fd::AsFd};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps},
    process::{Gid, Uid},
};

/// Copies the entries of one directory into another.
pub(crate) fn directory(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    for entry in Dir::read_from(from.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        copy(from.as_fd(), to.as_fd(), name, &stat)?;
    }
    Ok(())
}

fn copy(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
) -> io::Result<()> {
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    // what is opened must be what was looked at, so no link is followed and no FIFO waited for
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let source = rustix::fs::openat(from, name, read | OFlags::DIRECTORY, Mode::empty())?;
            rustix::fs::mkdirat(to, name, mode)?;
            let made = rustix::fs::openat(to, name, read | OFlags::DIRECTORY, Mode::empty())?;
            directory(&source, &made)?;
        }
        FileType::RegularFile => {
            let mut source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
            if !source.metadata()?.is_file() {
                return Err(io::Error::other("a file changed its type while it was copied"));
            }
            let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut made = File::from(rustix::fs::openat(to, name, write, mode)?);
            io::copy(&mut source, &mut made)?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
        }
        FileType::Socket | FileType::Unknown => return Ok(()),
    }
    keep_metadata(to, name, stat, mode)
}

fn keep_metadata(
    to: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
    mode: Mode,
) -> io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), nofollow)?;
    // chown takes set-id bits away, so the mode comes after it; links have none
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| {
        let tv_nsec = i64::try_from(nanoseconds).unwrap_or(0);
        Timespec {
            tv_sec: seconds,
            tv_nsec,
        }
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(to, name, &times, nofollow)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_times_and_links() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(from.path().join("a/b")).unwrap();
        std::fs::write(from.path().join("a/b/file"), b"content\0more").unwrap();
        std::fs::set_permissions(from.path().join("a/b/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        symlink("/nowhere", from.path().join("a/link")).unwrap();

        directory(File::open(from.path()).unwrap(), File::open(to.path()).unwrap()).unwrap();

        let file = to.path().join("a/b/file");
        assert_eq!(std::fs::read(&file).unwrap(), b"content\0more");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o4751);
        assert_eq!(
            file.metadata().unwrap().modified().unwrap(),
            from.path()
                .join("a/b/file")
                .metadata()
                .unwrap()
                .modified()
                .unwrap()
        );
        assert_eq!(
            std::fs::read_link(to.path().join("a/link")).unwrap().to_str(),
            Some("/nowhere")
        );
    }
}
