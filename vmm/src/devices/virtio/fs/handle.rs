//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::dir::DirStream;

/// One open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    /// Node id that it was opened on; requests for another node are refused.
    pub(super) node: u64,
    /// The descriptor, open for real.
    pub(super) file: Arc<OwnedFd>,
    /// It is open for writing.
    pub(super) is_writable: bool,
    /// For directories, what was read and not yet given out.
    pub(super) stream: Option<DirStream>,
}

/// All open handles. Numbers are never used twice.
#[derive(Debug)]
pub(super) struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
    limit: usize,
}

impl Handles {
    /// At most `limit` at a time.
    pub(super) fn new(limit: usize) -> Handles {
        Handles {
            open: HashMap::new(),
            next: 1,
            limit,
        }
    }

    /// Whether one more fits; to be asked before anything is opened or made.
    ///
    /// # Errors
    /// ENFILE when it does not.
    pub(super) fn has_room(&self) -> Result<(), Errno> {
        if self.open.len() < self.limit {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    /// Takes a handle in and returns its number.
    pub(super) fn insert(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, handle);
        number
    }

    /// A handle on this node.
    ///
    /// # Errors
    /// EBADF when there is none of this number, or it is another node's.
    pub(super) fn get(&self, number: u64, node: u64) -> Result<&Handle, Errno> {
        let handle = self.open.get(&number).filter(|handle| handle.node == node);
        handle.ok_or(Errno::BADF)
    }

    /// The directory stream of a handle, and its descriptor.
    ///
    /// # Errors
    /// EBADF as in [`Handles::get`], and for handles of files.
    pub(super) fn stream(
        &mut self,
        number: u64,
        node: u64,
    ) -> Result<(&Arc<OwnedFd>, &mut DirStream), Errno> {
        let handle = self.open.get_mut(&number).filter(|handle| handle.node == node);
        let handle = handle.ok_or(Errno::BADF)?;
        let stream = handle.stream.as_mut().ok_or(Errno::BADF)?;
        Ok((&handle.file, stream))
    }

    /// Closes a handle.
    ///
    /// # Errors
    /// EBADF as in [`Handles::get`].
    pub(super) fn remove(&mut self, number: u64, node: u64) -> Result<(), Errno> {
        self.get(number, node)?;
        self.open.remove(&number);
        Ok(())
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
