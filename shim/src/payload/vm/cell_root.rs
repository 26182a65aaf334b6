//! The mount tree of a cell whose payload is a VMM: a small tmpfs with the container's root file
//! system at `/rootfs` and each bind source at `/volumes/N`. The file server exports this tree and
//! nothing else, and there is nothing else: the host's tree is detached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use moat_workload::sys;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

use super::translate::Export;

/// Why the tree could not be built; each names the path in question.
#[derive(Debug, thiserror::Error)]
pub enum CellRootError {
    /// A mount point or folder of the cell could not be made.
    #[error("cannot make {name} in the cell")]
    Make {
        /// Path in the cell.
        name: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// An export could not be taken from the host's tree.
    #[error("cannot open the mount tree at {}", path.display())]
    Open {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It could not be attached to the cell, or not be made read-only there.
    #[error("cannot attach {} to the cell as {name}", path.display())]
    Attach {
        /// Path on the host.
        path: PathBuf,
        /// Path in the cell.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// One of the steps that make the cell's own file systems failed.
    #[error("cannot {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn step<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> CellRootError {
    move |source| CellRootError::Step {
        step,
        source: source.into(),
    }
}

/// The tree, built and not yet entered.
#[derive(Debug)]
pub struct CellRoot {
    root: OwnedFd,
    proc: OwnedFd,
}

/// What the file server needs of an entered cell.
#[derive(Debug)]
pub struct EnteredCell {
    /// The cell's root directory.
    pub root: OwnedFd,
    /// `/proc/self/fd` of a procfs that is mounted nowhere.
    pub proc_self_fd: OwnedFd,
}

/// Builds the tree in the caller's own mount namespace, which must be new: mount propagation to the
/// host is cut first. It is staged over the container's root file system, a directory that is sure to
/// be there; in this mount namespace nothing else looks at it.
///
/// # Errors
/// When a mount or directory can't be made.
pub fn build(exports: &[Export]) -> Result<CellRoot, CellRootError> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(step("cut the mount propagation to the host"))?;
    let trees = exports.iter().map(open_export).collect::<Result<Vec<_>, _>>()?;
    let proc = mount_detached("proc", &[]).map_err(step("mount proc for the VMM"))?;
    let tmpfs = mount_detached("tmpfs", &[("mode", "0755"), ("size", "1m"), ("nr_inodes", "64k")])
        .map_err(step("mount a tmpfs as the cell's root"))?;
    let staging = exports
        .first()
        .map_or_else(|| PathBuf::from("/"), |export| export.source.clone());
    move_mount(
        tmpfs.as_fd(),
        "",
        rustix::fs::CWD,
        &staging,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|source| CellRootError::Attach {
        path: staging.clone(),
        name: "/".to_owned(),
        source: source.into(),
    })?;
    make_directory(tmpfs.as_fd(), "volumes")?;
    for (export, tree) in exports.iter().zip(trees) {
        attach(tmpfs.as_fd(), export, tree.as_fd())?;
    }
    Ok(CellRoot { root: tmpfs, proc })
}

impl CellRoot {
    /// Makes the tree the caller's root and detaches the host's.
    ///
    /// # Errors
    /// When the kernel refuses one of the steps.
    pub fn enter(self) -> Result<EnteredCell, CellRootError> {
        rustix::process::fchdir(&self.root).map_err(step("enter the cell's root"))?;
        rustix::process::pivot_root(".", ".").map_err(step("make the cell's root the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(step("detach the host's tree"))?;
        rustix::process::chdir("/").map_err(step("enter the cell's root"))?;
        let attributes = sys::MountAttributes {
            set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
            ..sys::MountAttributes::default()
        };
        sys::mount_setattr(self.root.as_fd(), c"", false, &attributes)
            .map_err(step("make the cell's root read-only"))?;
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &str| rustix::fs::openat(&self.proc, path, directory, Mode::empty());
        let proc_self_fd = open("self/fd").map_err(step("open /proc/self/fd"))?;
        Ok(EnteredCell {
            root: self.root,
            proc_self_fd,
        })
    }
}

fn open_export(export: &Export) -> Result<OwnedFd, CellRootError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if export.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(rustix::fs::CWD, &export.source, flags).map_err(|source| CellRootError::Open {
        path: export.source.clone(),
        source,
    })
}

fn attach(root: BorrowedFd<'_>, export: &Export, tree: BorrowedFd<'_>) -> Result<(), CellRootError> {
    if export.directory {
        make_directory(root, &export.name)?;
    } else {
        make_file(root, &export.name)?;
    }
    let failed = |source| CellRootError::Attach {
        path: export.source.clone(),
        name: export.name.clone(),
        source,
    };
    let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    set_attributes(tree, export.recursive, harmless).map_err(failed)?;
    if export.readonly {
        // As `ro` of a bind mount: the mount itself and not those below it.
        set_attributes(tree, false, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(failed)?;
    }
    move_mount(
        tree,
        "",
        root,
        export.name.as_str(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|source| failed(source.into()))
}

fn set_attributes(tree: BorrowedFd<'_>, recursive: bool, set: MountAttrFlags) -> std::io::Result<()> {
    let attributes = sys::MountAttributes {
        set: u64::from(set.bits()),
        ..sys::MountAttributes::default()
    };
    sys::mount_setattr(tree, c"", recursive, &attributes)
}

fn make_directory(root: BorrowedFd<'_>, name: &str) -> Result<(), CellRootError> {
    rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)).map_err(|source| CellRootError::Make {
        name: name.to_owned(),
        source,
    })
}

fn make_file(root: BorrowedFd<'_>, name: &str) -> Result<(), CellRootError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(root, name, flags, Mode::from_raw_mode(0o600))
        .map(drop)
        .map_err(|source| CellRootError::Make {
            name: name.to_owned(),
            source,
        })
}

fn mount_detached(fstype: &str, options: &[(&str, &str)]) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
