//! Paths inside a root that is not entered yet. The tree below the root is hostile: an image may hold
//! any symbolic link, and another container may move things about while we look. So every path becomes
//! a descriptor, resolved by the kernel without leaving the root (`openat2(2)`, `RESOLVE_IN_ROOT`), and
//! is used through that descriptor only.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// How often a look-up is repeated that raced with a rename or mount elsewhere (`EAGAIN`).
const ATTEMPTS: usize = 64;
/// Dangling links followed while making directories; the kernel's own limit for links (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// What to make at a mount's destination that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// The container's root, before it is `/`.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Root {
    /// A root at an `O_PATH` descriptor of a directory.
    pub(crate) fn new(directory: OwnedFd) -> Root {
        Root(directory)
    }

    /// An `O_PATH` descriptor of what the container would find at `path`.
    pub(crate) fn resolve(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_at(self.as_fd(), &clean(path), OFlags::PATH, resolve)
    }

    /// As [`Root::resolve`], but a symbolic link anywhere on the way is an error (`ELOOP`).
    pub(crate) fn resolve_without_links(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        open_at(self.as_fd(), &clean(path), OFlags::PATH, resolve)
    }

    /// Opens what is at `path`, where no symbolic link may be on the way.
    pub(crate) fn open_without_links(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_at(
            self.as_fd(),
            &clean(path),
            flags,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// A descriptor for reading a directory.
    pub(crate) fn open_directory(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_at(
            self.as_fd(),
            &clean(path),
            OFlags::RDONLY | OFlags::DIRECTORY,
            resolve,
        )
    }

    /// The directory at `path`, made with its parents where missing (mode 0755).
    pub(crate) fn make_directories(&self, path: &str) -> io::Result<OwnedFd> {
        self.make_directories_within(path, MAX_LINKS)
    }

    /// What is at `path`, made when missing: a directory, or an empty file (mode 0644).
    pub(crate) fn resolve_or_make(&self, path: &str, kind: Kind) -> io::Result<OwnedFd> {
        if kind == Kind::Directory {
            return self.make_directories(path);
        }
        let path = clean(path);
        let (parent, name) = split(&path);
        let parent = self.make_directories(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.resolve(&path)?)
    }

    fn make_directories_within(&self, path: &str, links: usize) -> io::Result<OwnedFd> {
        let path = clean(path);
        let (mut there, mut rest) = self.deepest(&path)?;
        while let Some((name, after)) = next_component(rest) {
            match rustix::fs::mkdirat(&there, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            match open_at(there.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY, resolve) {
                Ok(next) => there = next,
                Err(Errno::LOOP) if links > 0 => {
                    // a link to a directory that is not there yet, such as /var/run to /run
                    let made = &path[..path.len() - after.len()];
                    self.make_link_target(there.as_fd(), made.trim_end_matches('/'), name, links - 1)?;
                    return self.make_directories_within(&path, links - 1);
                }
                Err(error) => return Err(error.into()),
            }
            rest = after;
        }
        Ok(there)
    }

    fn make_link_target(
        &self,
        parent: BorrowedFd<'_>,
        link: &str,
        name: &str,
        links: usize,
    ) -> io::Result<()> {
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        let target = target.to_str().map_err(|_| io::ErrorKind::InvalidFilename)?;
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("{}/{target}", split(link).0)
        };
        self.make_directories_within(&target, links).map(drop)
    }

    /// The deepest directory on the way to `path` that exists, and what is missing below it.
    fn deepest<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let mut end = path.len();
        loop {
            match self.resolve(&path[..end]) {
                Ok(there) => return Ok((there, &path[end..])),
                Err(Errno::NOENT) if !path[..end].trim_matches('/').is_empty() => {
                    end = path[..end].rfind('/').unwrap_or(0);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The name of a descriptor that system calls take which know only paths. The procfs is the caller's
/// own, never the container's.
pub(crate) fn descriptor_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// `openat2` close-on-exec, repeated when it raced.
pub(crate) fn open_at(
    directory: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// An absolute path without empty, `.` and `..` components.
pub(crate) fn clean(path: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    format!("/{}", components.join("/"))
}

/// Parent and last component of a clean path.
pub(crate) fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", path),
    }
}

fn next_component(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_start_matches('/');
    if path.is_empty() {
        return None;
    }
    Some(path.split_once('/').unwrap_or((path, "")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use rustix::fs::CWD;

    use super::*;

    fn root(at: &std::path::Path) -> Root {
        Root::new(rustix::fs::openat(CWD, at, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap())
    }

    #[test]
    fn clean_paths_are_absolute_and_have_no_dots() {
        for (given, cleaned) in [
            ("", "/"),
            ("/", "/"),
            ("a//b/./c/", "/a/b/c"),
            ("/../../x", "/x"),
            ("/a/../b", "/b"),
        ] {
            assert_eq!(clean(given), cleaned, "{given:?}");
        }
    }

    #[test]
    fn missing_directories_are_made_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        root(dir.path()).make_directories("/a/b/../c").unwrap();
        assert!(dir.path().join("a/c").is_dir());
        root(dir.path()).resolve_or_make("/a/f/g", Kind::File).unwrap();
        assert!(dir.path().join("a/f/g").is_file());
    }

    #[test]
    fn absolute_links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        symlink("../../../../../..", dir.path().join("up")).unwrap();
        root(dir.path()).make_directories("/link/made").unwrap();
        root(dir.path()).make_directories("/up/beside").unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = dir
            .path()
            .join(outside.path().strip_prefix("/").unwrap())
            .join("made");
        assert!(inside.is_dir(), "{inside:?}");
        assert!(dir.path().join("beside").is_dir());
    }

    #[test]
    fn a_dangling_relative_link_leads_to_a_new_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("var")).unwrap();
        symlink("../run", dir.path().join("var/run")).unwrap();
        root(dir.path()).make_directories("/var/run/secrets/x").unwrap();
        assert!(dir.path().join("run/secrets/x").is_dir());
    }

    #[test]
    fn links_in_a_circle_end_in_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(root(dir.path()).make_directories("/a/x").is_err());
        assert!(root(dir.path()).resolve_without_links("/a").is_err());
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(root(dir.path()).make_directories("/file/x").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cleaning_twice_changes_nothing_more(path in "[a./]{0,20}") {
            let cleaned = clean(&path);
            prop_assert!(cleaned.starts_with('/'));
            prop_assert!(!cleaned.split('/').any(|component| component == "." || component == ".."));
            prop_assert_eq!(clean(&cleaned), cleaned);
        }

        /// Whatever links an image holds, nothing is made outside of the root, and making ends.
        #[test]
        fn nothing_is_made_outside_whatever_links_there_are(
            links in proptest::collection::vec(("[abc](/[abc]){0,2}", "(/|\\.\\./){0,4}[abc.]{0,2}(/[abc]){0,2}"), 0..6),
            path in "(/[abc]){1,4}",
        ) {
            let outer = tempfile::tempdir().unwrap();
            let dir = outer.path().join("1/2/3/root");
            std::fs::create_dir_all(&dir).unwrap();
            for (at, target) in links {
                let at = dir.join(at);
                // a parent may be a file or a dangling link: then there is one link less
                let _ = at.parent().map(std::fs::create_dir_all);
                let _ = symlink(target, at);
            }
            let before = entries(outer.path(), &dir);
            let _ = root(&dir).make_directories(&path);
            let _ = root(&dir).resolve_or_make(&format!("{path}/file"), Kind::File);
            prop_assert_eq!(entries(outer.path(), &dir), before);
        }
    }

    /// Everything below `path` but not below `except`.
    fn entries(path: &std::path::Path, except: &std::path::Path) -> Vec<std::path::PathBuf> {
        let mut found = vec![path.to_owned()];
        if path != except && path.is_dir() && !path.is_symlink() {
            for entry in std::fs::read_dir(path).unwrap() {
                found.extend(entries(&entry.unwrap().path(), except));
            }
        }
        found.sort();
        found
    }
}
