//! The inodes that the guest knows, and the few descriptors that stand behind them.
//!
//! An inode is identified by mount, device and number, so a file seen through two bind mounts is two
//! inodes and a hard link is one. The guest's references are counted; at 0 the inode is dropped. Node ids
//! are never used twice. The descriptors behind them are in `descriptors.rs`.
//!
//! # Snapshots
//! Descriptors cannot be stored. A snapshot of a session would store id, references, identity and place of
//! each inode, and restore it without a descriptor; inodes without a place would be lost.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::abi::FUSE_ROOT_ID;
use super::host::{self, Stat};

/// Most inodes that a guest may hold references to; about 1 GiB of the VMM's memory. A guest that goes on
/// gets ENFILE.
const INODES_MAX: usize = 1 << 22;

/// What makes an inode the same inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// Mount id of statx.
    pub(super) mount: u64,
    /// Device.
    pub(super) device: (u32, u32),
    /// Inode number.
    pub(super) number: u64,
}

/// The place of an inode: node id of the directory, and the name in it.
type Place = (u64, Arc<CStr>);

/// One inode that the guest knows.
#[derive(Debug)]
pub(super) struct Inode {
    /// Which one it is.
    pub(super) identity: Identity,
    /// What it is; never changes.
    pub(super) kind: FileType,
    /// Index of the export's cache rule.
    pub(super) export: usize,
    /// It is the root directory of a mount below the root.
    pub(super) is_submount: bool,
    /// Whether the directory has a default ACL, when that was found out.
    pub(super) default_acl: Option<bool>,
    birth: (i64, u32),
    references: u64,
    pub(super) descriptor: Option<Arc<OwnedFd>>,
    /// A descriptor of the guest's own opening serves as well, as long as there is one.
    pub(super) opened: Weak<OwnedFd>,
    pub(super) place: Option<Place>,
    pub(super) was_used: bool,
    pub(super) in_clock: bool,
}

/// All inodes of a session.
#[derive(Debug)]
pub(super) struct Inodes {
    pub(super) nodes: HashMap<u64, Inode>,
    by_identity: HashMap<Identity, u64>,
    /// By directory, then by name.
    by_place: HashMap<u64, HashMap<Arc<CStr>, u64>>,
    next_id: u64,
    /// Ids that may hold a descriptor, longest idle first.
    pub(super) clock: VecDeque<u64>,
    /// Mounts seen, and whether birth times tell inodes apart there. On overlayfs they do not: they change
    /// when a file is copied up.
    births_count: HashMap<u64, bool>,
    pub(super) held: usize,
    pub(super) budget: usize,
}

/// How an inode was found.
pub(super) struct Found<'a> {
    /// What statx says of it.
    pub(super) stat: &'a Stat,
    /// An `O_PATH` descriptor of it, when one was opened.
    pub(super) descriptor: Option<OwnedFd>,
    /// Where; `None` for a file without a name.
    pub(super) place: Option<(u64, &'a CStr)>,
    /// Index of its export's cache rule.
    pub(super) export: usize,
    /// It is on another mount than its directory.
    pub(super) is_submount: bool,
}

impl Inodes {
    /// A session that knows only the root. `budget` descriptors may be held beside it.
    pub(super) fn new(root: Arc<OwnedFd>, stat: &Stat, budget: usize) -> Inodes {
        let inode = Inode {
            identity: stat.identity,
            kind: stat.kind,
            export: 0,
            is_submount: false,
            default_acl: None,
            birth: (0, 0),
            references: 1,
            descriptor: Some(root),
            opened: Weak::new(),
            place: None,
            was_used: true,
            in_clock: false,
        };
        Inodes {
            by_identity: HashMap::from([(inode.identity, FUSE_ROOT_ID)]),
            nodes: HashMap::from([(FUSE_ROOT_ID, inode)]),
            by_place: HashMap::new(),
            next_id: FUSE_ROOT_ID + 1,
            clock: VecDeque::new(),
            births_count: HashMap::new(),
            held: 0,
            budget,
        }
    }

    /// The inode of an id.
    ///
    /// # Errors
    /// ESTALE when the guest holds no reference to such an id.
    pub(super) fn get(&self, id: u64) -> Result<&Inode, Errno> {
        self.nodes.get(&id).ok_or(Errno::STALE)
    }

    /// The inode that was last seen under this name, if any is known.
    pub(super) fn at(&self, directory: u64, name: &CStr) -> Option<u64> {
        self.by_place.get(&directory)?.get(name).copied()
    }

    /// Counts one more reference of the guest to the inode found, which may be new, and returns its id.
    ///
    /// # Errors
    /// ENFILE when the guest knows too many inodes or too many have lost their place.
    pub(super) fn refer(&mut self, found: Found<'_>) -> Result<u64, Errno> {
        if let Some(descriptor) = &found.descriptor {
            self.learn_mount(found.stat, descriptor);
        }
        if let Some(id) = self.known(found.stat) {
            self.refer_again(id, found);
            return Ok(id);
        }
        if self.nodes.len() >= INODES_MAX {
            return Err(Errno::NFILE);
        }
        self.make_room(found.place.is_none())?;
        let id = self.next_id;
        self.next_id += 1;
        self.nodes.insert(
            id,
            Inode {
                identity: found.stat.identity,
                kind: found.stat.kind,
                export: found.export,
                is_submount: found.is_submount,
                default_acl: None,
                birth: self.birth(found.stat),
                references: 1,
                descriptor: None,
                opened: Weak::new(),
                place: None,
                was_used: false,
                in_clock: false,
            },
        );
        self.by_identity.insert(found.stat.identity, id);
        if let Some((directory, name)) = found.place {
            self.put_at(id, directory, name);
        }
        if let Some(descriptor) = found.descriptor {
            self.hold(id, Arc::new(descriptor));
        }
        Ok(id)
    }

    /// Takes back `count` references.
    pub(super) fn forget(&mut self, id: u64, count: u64) {
        if id == FUSE_ROOT_ID {
            return;
        }
        let Some(inode) = self.nodes.get_mut(&id) else {
            return;
        };
        inode.references = inode.references.saturating_sub(count);
        if inode.references == 0 {
            self.drop_inode(id);
        }
    }

    /// The name is about to be taken from the inode that has it: makes sure that the inode stays in
    /// reach. An inode that cannot be reached any more is gone already; that is no error.
    pub(super) fn keep_in_reach(&mut self, directory: u64, name: &CStr) {
        if let Some(id) = self.at(directory, name) {
            let _ = self.descriptor(id);
        }
    }

    /// The guest has removed a name.
    pub(super) fn removed(&mut self, directory: u64, name: &CStr) {
        if let Some(id) = self.leave_place(directory, name)
            && let Some(inode) = self.nodes.get_mut(&id)
        {
            inode.place = None;
        }
    }

    /// The guest has given an inode a (further) name.
    pub(super) fn linked(&mut self, id: u64, directory: u64, name: &CStr) {
        if self.nodes.get(&id).is_some_and(|inode| inode.place.is_none()) && id != FUSE_ROOT_ID {
            self.put_at(id, directory, name);
        }
    }

    /// The guest has renamed; what was at `to` is gone.
    pub(super) fn renamed(&mut self, from: (u64, &CStr), to: (u64, &CStr)) {
        let moved = self.at(from.0, from.1);
        self.removed(from.0, from.1);
        self.removed(to.0, to.1);
        if let Some(id) = moved {
            self.put_at(id, to.0, to.1);
        }
    }

    /// The guest has exchanged two names.
    pub(super) fn exchanged(&mut self, one: (u64, &CStr), other: (u64, &CStr)) {
        let (first, second) = (self.at(one.0, one.1), self.at(other.0, other.1));
        self.removed(one.0, one.1);
        self.removed(other.0, other.1);
        if let Some(id) = first {
            self.put_at(id, other.0, other.1);
        }
        if let Some(id) = second {
            self.put_at(id, one.0, one.1);
        }
    }

    /// Remembers, or with `None` forgets, whether a directory has a default ACL.
    pub(super) fn remember_default_acl(&mut self, id: u64, has: Option<bool>) {
        if let Some(inode) = self.nodes.get_mut(&id) {
            inode.default_acl = has;
        }
    }

    /// Inodes known, the root included.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The inode of this identity, unless the number has passed to another inode meanwhile.
    fn known(&mut self, stat: &Stat) -> Option<u64> {
        let id = *self.by_identity.get(&stat.identity)?;
        let inode = self.nodes.get(&id)?;
        let is_same = self.is_same(inode, stat);
        // While a descriptor is held, the number cannot pass on.
        if is_same || inode.descriptor.is_some() {
            return Some(id);
        }
        self.by_identity.remove(&stat.identity);
        self.lose_place(id);
        None
    }

    /// Whether an inode of the same identity is the one known, and not a later one with its number.
    pub(super) fn is_same(&self, inode: &Inode, stat: &Stat) -> bool {
        let birth = self.birth(stat);
        let same_birth = inode.birth == birth || inode.birth == (0, 0) || birth == (0, 0);
        inode.kind == stat.kind && same_birth
    }

    /// Birth time, where it means something.
    fn birth(&self, stat: &Stat) -> (i64, u32) {
        let counts = self
            .births_count
            .get(&stat.identity.mount)
            .copied()
            .unwrap_or(false);
        if counts { stat.birth } else { (0, 0) }
    }

    fn learn_mount(&mut self, stat: &Stat, descriptor: &OwnedFd) {
        let known = self.births_count.entry(stat.identity.mount);
        known.or_insert_with(|| host::birth_time_is_constant(descriptor));
    }

    fn refer_again(&mut self, id: u64, found: Found<'_>) {
        if let Some((directory, name)) = found.place
            && id != FUSE_ROOT_ID
        {
            self.put_at(id, directory, name);
        }
        if let Some(inode) = self.nodes.get_mut(&id) {
            inode.references = inode.references.saturating_add(1);
            inode.was_used = true;
            if inode.descriptor.is_none()
                && let Some(descriptor) = found.descriptor
            {
                // When there is no room, the inode stays as it was: to be opened by its place.
                if self.make_room(false).is_ok() {
                    self.hold(id, Arc::new(descriptor));
                }
            }
        }
    }

    fn put_at(&mut self, id: u64, directory: u64, name: &CStr) {
        let Some(inode) = self.nodes.get(&id) else { return };
        if let Some((known, called)) = &inode.place
            && *known == directory
            && called.as_ref() == name
        {
            return;
        }
        self.lose_place(id);
        let place: Place = (directory, Arc::from(name));
        let names = self.by_place.entry(directory).or_default();
        if let Some(before) = names.insert(Arc::clone(&place.1), id)
            && let Some(inode) = self.nodes.get_mut(&before)
        {
            inode.place = None;
        }
        if let Some(inode) = self.nodes.get_mut(&id) {
            inode.place = Some(place);
        }
    }

    pub(super) fn lose_place(&mut self, id: u64) {
        if let Some(inode) = self.nodes.get_mut(&id)
            && let Some((directory, name)) = inode.place.take()
        {
            self.leave_place(directory, &name);
        }
    }

    /// Takes a name out of the index; the inode that was there.
    fn leave_place(&mut self, directory: u64, name: &CStr) -> Option<u64> {
        let names = self.by_place.get_mut(&directory)?;
        let id = names.remove(name);
        if names.is_empty() {
            self.by_place.remove(&directory);
        }
        id
    }

    fn drop_inode(&mut self, id: u64) {
        self.lose_place(id);
        if let Some(inode) = self.nodes.remove(&id) {
            self.held -= usize::from(inode.descriptor.is_some());
            if self.by_identity.get(&inode.identity) == Some(&id) {
                self.by_identity.remove(&inode.identity);
            }
        }
        // Ids of dropped inodes are left in the clock and skipped there; they must not pile up.
        if self.clock.len() > 64 + 2 * self.held {
            self.clock.retain(|id| self.nodes.contains_key(id));
        }
    }
}
