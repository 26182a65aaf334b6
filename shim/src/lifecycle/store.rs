//! Where containers are remembered: a directory each below `--root`, locked while a verb changes it.
//!
//! | file | says |
//! |---|---|
//! | `record.json` | what the container is ([`Record`]) |
//! | `process.json` | its init exists ([`ProcessId`]) |
//! | `control.sock` | it is created and can be started |
//! | `started` | its workload was started |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{ProcessId, Record};
use crate::control;

const RECORD: &str = "record.json";
const PROCESS: &str = "process.json";
const STARTED: &str = "started";

/// Longest id: it becomes a file name, with room for a suffix.
const MAX_ID: usize = 240;

/// What can go wrong with what is remembered.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An id that is not one.
    #[error("invalid container id {id:?}: letters, digits and _+.- are possible, at most {MAX_ID}")]
    InvalidId {
        /// The id.
        id: String,
    },
    /// A container with this id is there.
    #[error("container with id {id} exists already")]
    Exists {
        /// The id.
        id: String,
    },
    /// No container with this id is there.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// The id.
        id: String,
    },
    /// A step on the file system failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there and makes no sense.
    #[error("cannot understand {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}

/// The directory of all containers.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// runc's rule: one file name, of harmless letters.
fn check_id(id: &str) -> Result<(), StoreError> {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'.' | b'-');
    if id.is_empty() || id == "." || id == ".." || id.len() > MAX_ID || !id.bytes().all(harmless) {
        return Err(StoreError::InvalidId { id: id.to_owned() });
    }
    Ok(())
}

impl Store {
    /// Containers below `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Store {
        Store { root }
    }

    /// Makes the directory of a new container, and locks it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the id is taken.
    pub fn create(&self, id: &str) -> Result<Locked, StoreError> {
        check_id(id)?;
        let path = self.root.join(id);
        let make = || fs::DirBuilder::new().mode(0o700).create(&path);
        let made = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let root = fs::DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(&self.root);
                root.map_err(file_error("make", &self.root))?;
                make()
            }
            made => made,
        };
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists { id: id.to_owned() });
            }
            made => made.map_err(file_error("make", &path))?,
        }
        self.open(id)?.lock()
    }

    /// The container's directory.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub fn open(&self, id: &str) -> Result<ContainerDirectory, StoreError> {
        check_id(id)?;
        let path = self.root.join(id);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(directory) => Ok(ContainerDirectory {
                id: id.to_owned(),
                path,
                directory: directory.into(),
            }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                Err(StoreError::NotFound { id: id.to_owned() })
            }
            Err(error) => Err(file_error("open", &path)(error.into())),
        }
    }

    /// Ids of all containers, sorted.
    ///
    /// # Errors
    /// When the directory can't be read; that it is missing is no error.
    pub fn ids(&self) -> Result<Vec<String>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(file_error("read", &self.root))?,
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|id| check_id(id).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// The directory of one container.
#[derive(Debug)]
pub struct ContainerDirectory {
    id: String,
    path: PathBuf,
    directory: File,
}

/// What is remembered of one container at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// What it is; missing when its creation was broken off at the very beginning.
    pub record: Option<Record>,
    /// Its init.
    pub init: Option<ProcessId>,
    /// It was created.
    pub created: bool,
    /// Its workload was started.
    pub started: bool,
}

impl ContainerDirectory {
    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All that is remembered.
    ///
    /// # Errors
    /// When a file is there and can't be understood.
    pub fn read(&self) -> Result<Memory, StoreError> {
        Ok(Memory {
            record: self.read_json(RECORD)?,
            init: self.read_json(PROCESS)?,
            created: self.exists(control::SOCKET),
            started: self.exists(STARTED),
        })
    }

    fn exists(&self, name: &str) -> bool {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::accessat(&self.directory, name, rustix::fs::Access::EXISTS, flags).is_ok()
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(|error| file_error("open", &path)(error.into()))?,
        };
        let text = io::read_to_string(File::from(file)).map_err(file_error("read", &path))?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| StoreError::Parse { path, source })
    }

    /// Whether some verb is changing the container right now.
    pub fn is_locked(&self) -> bool {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                let _unlocked = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
                false
            }
            Err(_) => true,
        }
    }

    /// The user who made the container.
    pub fn owner(&self) -> u32 {
        self.directory.metadata().map_or(0, |metadata| metadata.uid())
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the container was deleted meanwhile.
    pub fn lock(self) -> Result<Locked, StoreError> {
        let locked = loop {
            match rustix::fs::flock(&self.directory, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                locked => break locked,
            }
        };
        locked.map_err(|error| file_error("lock", &self.path)(error.into()))?;
        self.locked()
    }

    /// Takes the lock if nobody has it, and gives the directory back otherwise.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the container was deleted meanwhile.
    pub fn try_lock(self) -> Result<Result<Locked, ContainerDirectory>, StoreError> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.locked().map(Ok),
            Err(_) => Ok(Err(self)),
        }
    }

    fn locked(self) -> Result<Locked, StoreError> {
        match self.directory.metadata() {
            // A removed directory has no name left.
            Ok(metadata) if metadata.nlink() == 0 => Err(StoreError::NotFound { id: self.id }),
            Ok(_) => Ok(Locked { directory: self }),
            Err(error) => Err(file_error("look at", &self.path)(error)),
        }
    }
}

impl AsFd for ContainerDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// A container's directory that no other verb changes meanwhile. A process that inherits it must drop
/// it, or the lock lives on.
#[derive(Debug)]
pub struct Locked {
    directory: ContainerDirectory,
}

impl std::ops::Deref for Locked {
    type Target = ContainerDirectory;

    fn deref(&self) -> &ContainerDirectory {
        &self.directory
    }
}

impl Locked {
    /// Remembers what the container is.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        self.write_json(RECORD, record)
    }

    /// Remembers its init.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_process(&self, process: ProcessId) -> Result<(), StoreError> {
        self.write_json(PROCESS, &process)
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let text = serde_json::to_vec(value).map_err(|source| StoreError::Parse {
            path: path.clone(),
            source,
        })?;
        write_whole(&path, &text, 0o600)
    }

    /// Remembers that it is created.
    ///
    /// # Errors
    /// When the socket can't be renamed.
    pub fn mark_created(&self) -> Result<(), StoreError> {
        let directory = &self.directory.directory;
        rustix::fs::renameat(directory, control::SOCKET_OF_CREATION, directory, control::SOCKET)
            .map_err(|error| file_error("rename the control socket in", &self.path)(error.into()))
    }

    /// Remembers that its workload was started.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn mark_started(&self) -> Result<(), StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.directory.directory, STARTED, flags, Mode::RUSR | Mode::WUSR)
            .map(drop)
            .map_err(|error| file_error("write", &self.path.join(STARTED))(error.into()))
    }

    /// Forgets the container: its id is free again.
    ///
    /// # Errors
    /// When the directory can't be removed.
    pub fn remove(self) -> Result<(), StoreError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("remove", &self.path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Writes a file so that others see it whole or not at all.
///
/// # Errors
/// When it can't be written beside its final name, or renamed.
pub fn write_whole(path: &Path, text: &[u8], mode: u32) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary);
    let mut file = file.map_err(file_error("write", path))?;
    file.write_all(text).map_err(file_error("write", path))?;
    fs::rename(&temporary, path).map_err(file_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("deep/er"));
        (folder, store)
    }

    #[test]
    fn ids_are_runcs() {
        for id in ["a", "A-1_b.c+d", "...", "x".repeat(MAX_ID).as_str()] {
            check_id(id).unwrap();
        }
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "a\n",
            "x".repeat(MAX_ID + 1).as_str(),
        ] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_taken_id_is_refused_and_free_again_after_removal() {
        let (_folder, store) = store();
        let container = store.create("c1").unwrap();
        assert!(matches!(store.create("c1"), Err(StoreError::Exists { .. })));
        assert_eq!(store.ids().unwrap(), ["c1"]);
        container.remove().unwrap();
        assert!(matches!(store.open("c1"), Err(StoreError::NotFound { .. })));
        store.create("c1").unwrap();
    }

    #[test]
    fn each_fact_is_remembered_once_it_is_told() {
        let (_folder, store) = store();
        let container = store.create("c1").unwrap();
        let nothing = Memory {
            record: None,
            init: None,
            created: false,
            started: false,
        };
        assert_eq!(container.read().unwrap(), nothing);
        let listener = control::listen(&*container).unwrap();
        let init = ProcessId { pid: 5, start: 7 };
        container.write_process(init).unwrap();
        container.mark_created().unwrap();
        container.mark_started().unwrap();
        let all = Memory {
            record: None,
            init: Some(init),
            created: true,
            started: true,
        };
        assert_eq!(store.open("c1").unwrap().read().unwrap(), all);
        drop(listener);
    }

    #[test]
    fn a_lock_is_seen_and_a_deleted_container_is_not_found_by_who_waited() {
        let (_folder, store) = store();
        let container = store.create("c1").unwrap();
        let other = store.open("c1").unwrap();
        assert!(other.is_locked());
        let other = other.try_lock().unwrap().unwrap_err();
        container.remove().unwrap();
        assert!(matches!(other.lock(), Err(StoreError::NotFound { .. })));
    }

    #[test]
    fn a_store_that_was_never_used_is_empty() {
        let (_folder, store) = store();
        assert!(store.ids().unwrap().is_empty());
    }
}
