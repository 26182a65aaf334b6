//! The few descriptors behind the many inodes that a guest knows.
//!
//! A guest may know a hundred thousand inodes while the process may hold a thousand descriptors. File
//! handles (`open_by_handle_at`) need `CAP_DAC_READ_SEARCH`, which the VMM does not keep. So each inode
//! remembers its *place*, the directory and name under which it was last seen. Past the budget the inode
//! that was idle longest (second chance) loses its `O_PATH` descriptor; the next use opens it again from
//! the place, and only if mount, device, number and birth time are still the same. What the guest itself
//! renames or removes is followed exactly. An inode that has lost its last known place (removed, or made
//! by `O_TMPFILE`) keeps its descriptor, unless the guest has it open. Only what somebody else on the host
//! moves away while the descriptor is closed is lost: that gives ESTALE, and the guest looks the path up
//! again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::host;
use super::inode::Inodes;

/// Longest chain of directories that is walked to open an inode again.
const DEPTH_MAX: usize = 4096;

impl Inodes {
    /// A descriptor of the inode, opened again if need be. Good for `*at` calls and for `/proc/self/fd`.
    ///
    /// # Errors
    /// ESTALE when the id is unknown, or the inode is not where it was.
    pub(super) fn descriptor(&mut self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(descriptor) = self.at_hand(id)? {
            return Ok(descriptor);
        }
        let mut missing = vec![id];
        let mut directory = loop {
            let last = missing.last().copied().unwrap_or(id);
            let parent = self.get(last)?.place.as_ref().ok_or(Errno::STALE)?.0;
            if let Some(descriptor) = self.at_hand(parent)? {
                break descriptor;
            }
            if missing.len() >= DEPTH_MAX {
                return Err(Errno::STALE);
            }
            missing.push(parent);
        };
        for id in missing.into_iter().rev() {
            directory = self.open_again(id, &directory)?;
        }
        Ok(directory)
    }

    /// The guest has opened the inode: as long as `opened` lives, it serves as the descriptor too.
    pub(super) fn opened(&mut self, id: u64, opened: &Arc<OwnedFd>) {
        if let Some(inode) = self.nodes.get_mut(&id) {
            inode.opened = Arc::downgrade(opened);
        }
    }

    /// Changes how many descriptors may be held, to what is left of the common budget; closes what is over.
    pub(super) fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
        self.close_idle(budget);
    }

    /// Descriptors held, the root's not included.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    fn at_hand(&mut self, id: u64) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let inode = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        inode.was_used = true;
        Ok(inode.descriptor.clone().or_else(|| inode.opened.upgrade()))
    }

    fn open_again(&mut self, id: u64, directory: &OwnedFd) -> Result<Arc<OwnedFd>, Errno> {
        let inode = self.get(id)?;
        let (_, name) = inode.place.as_ref().ok_or(Errno::STALE)?;
        let descriptor = host::open_beneath(directory, name).map_err(stale)?;
        let stat = host::stat(&descriptor)?;
        if stat.identity != inode.identity || !self.is_same(inode, &stat) {
            self.lose_place(id);
            return Err(Errno::STALE);
        }
        let descriptor = Arc::new(descriptor);
        self.make_room(false)?;
        self.hold(id, Arc::clone(&descriptor));
        Ok(descriptor)
    }

    pub(super) fn hold(&mut self, id: u64, descriptor: Arc<OwnedFd>) {
        if let Some(inode) = self.nodes.get_mut(&id) {
            if inode.descriptor.replace(descriptor).is_none() {
                self.held += 1;
            }
            if !inode.in_clock {
                inode.in_clock = true;
                self.clock.push_back(id);
            }
        }
    }

    /// Closes idle descriptors until one more fits. One that will stay for good, because its inode has no
    /// place, may take half of the budget at the most.
    pub(super) fn make_room(&mut self, is_for_good: bool) -> Result<(), Errno> {
        let budget = if is_for_good { self.budget / 2 } else { self.budget };
        self.close_idle(budget.saturating_sub(1));
        // A few more than the budget do no harm: half of the limit is not even ours. But a guest that
        // hoards removed files is stopped here.
        if self.held >= self.budget + self.budget / 8 + 8 {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    /// Closes until no more than `count` are held, or none is idle.
    fn close_idle(&mut self, count: usize) {
        // Twice around: once to take away the second chances, once to close.
        let mut tries = 2 * self.clock.len();
        while self.held > count && tries > 0 {
            tries -= 1;
            let Some(id) = self.clock.pop_front() else { break };
            self.close_if_idle(id);
        }
    }

    fn close_if_idle(&mut self, id: u64) {
        let Some(inode) = self.nodes.get_mut(&id) else {
            return;
        };
        // Without a place it could not be opened again; unless the guest has it open, it stays.
        let is_in_reach = inode.place.is_some() || inode.opened.strong_count() > 0;
        if inode.was_used || !is_in_reach {
            inode.was_used = false;
            self.clock.push_back(id);
            return;
        }
        inode.in_clock = false;
        if inode.descriptor.take().is_some() {
            self.held -= 1;
        }
    }
}

/// An inode that is not at its place any more is stale, whatever stands there now.
fn stale(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
        error => error,
    }
}
