//! One mount of a container, put in place (OCI config.md "Mounts").
//!
//! Destinations are descriptors resolved inside the root. Bind mounts are made with the new mount API
//! (`open_tree`, `mount_setattr`, `move_mount`): attributes and propagation are set while nobody can see
//! the mount, and no remount is needed. File systems are mounted by `mount(2)`, which takes options and
//! flags in a single call.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use moat_protocol::workload_spec::{CgroupMount, MountSource, MountSpec};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags},
};

use crate::{
    copy_up,
    path::{Kind, Root, descriptor_path},
    sys::{self, MountAttributes},
};

const MS_REC: u64 = libc::MS_REC;

// linux/mount.h
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR__ATIME: u64 = 0x70;
const MOUNT_ATTR_RELATIME: u64 = 0;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// A mount that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {mount}: {step}")]
pub struct MountError {
    /// Source, destination, flags and options.
    pub mount: String,
    /// What was being done.
    pub step: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A mount that becomes read-only when everything below it is there.
#[derive(Debug)]
pub(crate) struct ReadonlyLater(OwnedFd);

impl ReadonlyLater {
    pub(crate) fn apply(&self) -> io::Result<()> {
        set_readonly(&self.0)
    }
}

/// Makes one mount read-only.
pub(crate) fn set_readonly(mount: impl AsFd) -> io::Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY,
        ..MountAttributes::default()
    };
    sys::mount_setattr(mount.as_fd(), c"", false, &attributes)
}

/// Mounts `mount` in `root`. A tmpfs that is to be read-only is handed back, since devices and other
/// mounts' destinations may have to be made in it first.
pub(crate) fn apply(root: &Root, mount: &MountSpec) -> Result<Option<ReadonlyLater>, MountError> {
    let context = |(step, source): Step| MountError {
        mount: describe(mount),
        step,
        source,
    };
    match &mount.source {
        MountSource::Bind { path, recursive } => bind(root, mount, path, *recursive)
            .map(|()| None)
            .map_err(context),
        MountSource::Filesystem { fstype, source } => {
            filesystem(root, mount, fstype, source).map_err(context)
        }
        MountSource::Cgroup(CgroupMount::V2) => filesystem(root, mount, "cgroup2", "cgroup").map_err(context),
        MountSource::Cgroup(CgroupMount::V2Bind { path }) => {
            bind(root, mount, path, false).map(|()| None).map_err(context)
        }
        MountSource::Cgroup(CgroupMount::V1 { hierarchies, links }) => {
            cgroup_v1(root, mount, hierarchies, links).map_err(context)
        }
    }
}

/// What failed, before it is told which mount it belongs to.
type Step = (&'static str, io::Error);

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Step {
    move |cause| (step, cause.into())
}

fn bind(root: &Root, mount: &MountSpec, path: &str, recursive: bool) -> Result<(), Step> {
    let tree = clone_tree(path, recursive)?;
    let destination = match root.resolve(&mount.destination) {
        Ok(destination) => destination,
        Err(Errno::NOENT) => {
            let kind = kind_of(&tree).map_err(at("look at the source"))?;
            root.resolve_or_make(&mount.destination, kind)
                .map_err(at("make the destination"))?
        }
        Err(error) => return Err(("resolve the destination", error.into())),
    };
    set_attributes(&tree, mount, recursive, mount.flags)?;
    attach(&tree, &destination).map_err(at("attach the mount"))
}

fn filesystem(
    root: &Root,
    mount: &MountSpec,
    fstype: &str,
    source: &str,
) -> Result<Option<ReadonlyLater>, Step> {
    let destination = if matches!(fstype, "proc" | "sysfs") {
        own_directory(root, &mount.destination)?
    } else {
        root.resolve_or_make(&mount.destination, Kind::Directory)
            .map_err(at("make the destination"))?
    };
    let copied = if mount.copy_up {
        Some(
            root.open_directory(&mount.destination)
                .map_err(at("open what is to be copied"))?,
        )
    } else {
        None
    };
    let later = fstype == "tmpfs" && mount.flags & libc::MS_RDONLY != 0;
    let flags = if later {
        mount.flags & !libc::MS_RDONLY
    } else {
        mount.flags
    };
    let result = mount_filesystem(source, &descriptor_path(&destination), fstype, flags, &mount.data);
    match result {
        // a new sysfs needs a network namespace of the same user namespace; the outer one shows no more
        Err(Errno::PERM) if fstype == "sysfs" => {
            let tree = clone_tree("/sys", true)?;
            set_attributes(&tree, mount, true, flags)?;
            attach(&tree, &destination).map_err(at("attach /sys in place of a new sysfs"))?;
            return Ok(None);
        }
        result => result.map_err(at("mount the file system"))?,
    }
    let extra = !mount.propagation.is_empty() || mount.recursive_set | mount.recursive_clear != 0;
    if !(later || extra || copied.is_some()) {
        return Ok(None);
    }
    // the destination's descriptor is of the directory below the new mount
    let mounted = root
        .resolve(&mount.destination)
        .map_err(at("resolve the new mount"))?;
    if let Some(from) = copied {
        let to = root
            .open_directory(&mount.destination)
            .map_err(at("open the new mount"))?;
        copy_up::directory(&from, &to).map_err(at("copy up what was there"))?;
    }
    if extra {
        set_attributes(&mounted, mount, false, 0)?;
    }
    Ok(later.then_some(ReadonlyLater(mounted)))
}

/// `/proc` and `/sys` are mounted on directories of their own, never through a link that would put
/// another file system where the kernel's is expected (CVE-2019-19921).
fn own_directory(root: &Root, destination: &str) -> Result<OwnedFd, Step> {
    match root.resolve_without_links(destination) {
        Err(Errno::NOENT) => {
            root.make_directories(destination)
                .map_err(at("make the destination"))?;
            root.resolve_without_links(destination)
                .map_err(at("resolve the destination without links"))
        }
        result => result.map_err(at("resolve the destination without links")),
    }
}

fn cgroup_v1(
    root: &Root,
    mount: &MountSpec,
    hierarchies: &[(String, String)],
    links: &[(String, String)],
) -> Result<Option<ReadonlyLater>, Step> {
    let destination = root
        .resolve_or_make(&mount.destination, Kind::Directory)
        .map_err(at("make the destination"))?;
    let flags = mount.flags & !libc::MS_RDONLY;
    mount_filesystem(
        "tmpfs",
        &descriptor_path(&destination),
        "tmpfs",
        flags,
        "mode=755",
    )
    .map_err(at("mount the tmpfs for the hierarchies"))?;
    let top = root
        .resolve(&mount.destination)
        .map_err(at("resolve the tmpfs"))?;
    for (name, path) in hierarchies {
        let tree = clone_tree(path, true)?;
        set_attributes(&tree, mount, true, mount.flags)?;
        rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755))
            .map_err(at("make a hierarchy's place"))?;
        let place = rustix::fs::openat(&top, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(at("open a hierarchy's place"))?;
        attach(&tree, &place).map_err(at("attach a hierarchy"))?;
    }
    for (name, target) in links {
        rustix::fs::symlinkat(target, &top, name).map_err(at("link a controller to its hierarchy"))?;
    }
    Ok((mount.flags & libc::MS_RDONLY != 0).then_some(ReadonlyLater(top)))
}

/// `mount(2)` of a file system.
pub(crate) fn mount_filesystem(
    source: &str,
    destination: &str,
    fstype: &str,
    flags: u64,
    data: &str,
) -> rustix::io::Result<()> {
    let flags = u32::try_from(flags).map_err(|_| Errno::INVAL)?;
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        source,
        destination,
        fstype,
        MountFlags::from_bits_retain(flags),
        data.as_c_str(),
    )
}

/// A detached copy of the mount tree at a path that the host gave.
fn clone_tree(path: &str, recursive: bool) -> Result<OwnedFd, Step> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags).map_err(at("open the source"))
}

/// A detached copy of the mount at a descriptor.
pub(crate) fn clone_descriptor(of: impl AsFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(of, "", flags)
}

/// Attaches a detached mount tree at exactly what `destination` is.
pub(crate) fn attach(tree: impl AsFd, destination: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", destination, "", flags)
}

/// Whether a mount of this needs a directory or a file to be mounted on.
pub(crate) fn kind_of(descriptor: impl AsFd) -> rustix::io::Result<Kind> {
    let mode = rustix::fs::statat(descriptor, "", AtFlags::EMPTY_PATH)?.st_mode;
    Ok(if FileType::from_raw_mode(mode) == FileType::Directory {
        Kind::Directory
    } else {
        Kind::File
    })
}

fn set_attributes(tree: &OwnedFd, mount: &MountSpec, recursive: bool, flags: u64) -> Result<(), Step> {
    for (deep, attributes) in attribute_calls(mount, recursive, flags) {
        sys::mount_setattr(tree.as_fd(), c"", deep, &attributes).map_err(at("set the mount's attributes"))?;
    }
    Ok(())
}

/// The fewest `mount_setattr` calls (recursive or not, what) that do what a mount asks. Where the tree
/// is a single mount, recursive and plain changes are the same and share a call.
fn attribute_calls(mount: &MountSpec, recursive: bool, flags: u64) -> Vec<(bool, MountAttributes)> {
    let (set, clear) = flag_attributes(flags);
    let mut calls = vec![
        (
            false,
            MountAttributes {
                set,
                clear,
                ..MountAttributes::default()
            },
        ),
        (
            true,
            MountAttributes {
                set: mount.recursive_set,
                clear: mount.recursive_clear,
                ..MountAttributes::default()
            },
        ),
    ];
    calls.extend(mount.propagation.iter().map(|&change| {
        let attributes = MountAttributes {
            propagation: change & !MS_REC,
            ..MountAttributes::default()
        };
        (change & MS_REC != 0, attributes)
    }));
    calls.retain(|(_, call)| call.set | call.clear | call.propagation != 0);
    let mut merged: Vec<(bool, MountAttributes)> = Vec::new();
    for (deep, call) in calls {
        let deep = deep && recursive;
        match merged.last_mut() {
            Some((last_deep, last)) if *last_deep == deep && can_merge(last, &call) => {
                last.set |= call.set;
                last.clear |= call.clear;
                last.propagation |= call.propagation;
            }
            _ => merged.push((deep, call)),
        }
    }
    merged
}

/// Two changes can be one when the later neither undoes the earlier nor meets its bits: attributes are
/// cleared before they are set, and one call has one propagation.
fn can_merge(first: &MountAttributes, second: &MountAttributes) -> bool {
    let touched = first.set | first.clear;
    touched & (second.set | second.clear) == 0 && (first.propagation == 0 || second.propagation == 0)
}

/// `MOUNT_ATTR_*` to set and clear for `MS_*` flags. Restrictions that the source of a bind mount has
/// are never lifted: flags only add.
fn flag_attributes(flags: u64) -> (u64, u64) {
    const PLAIN: [(u64, u64); 6] = [
        (libc::MS_RDONLY, MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, MOUNT_ATTR_NOEXEC),
        (libc::MS_NODIRATIME, MOUNT_ATTR_NODIRATIME),
        (libc::MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW),
    ];
    const ATIME: [(u64, u64); 3] = [
        (libc::MS_NOATIME, MOUNT_ATTR_NOATIME),
        (libc::MS_STRICTATIME, MOUNT_ATTR_STRICTATIME),
        (libc::MS_RELATIME, MOUNT_ATTR_RELATIME),
    ];
    let mut set = PLAIN
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .fold(0, |set, (_, bit)| set | bit);
    let mut clear = 0;
    if let Some((_, mode)) = ATIME.iter().find(|(flag, _)| flags & flag != 0) {
        set |= mode;
        clear = MOUNT_ATTR__ATIME;
    }
    (set, clear)
}

fn describe(mount: &MountSpec) -> String {
    let what = match &mount.source {
        MountSource::Filesystem { fstype, source } if fstype == source => fstype.clone(),
        MountSource::Filesystem { fstype, source } => format!("{fstype} {source:?}"),
        MountSource::Bind {
            path,
            recursive: false,
        } => format!("bind of {path:?}"),
        MountSource::Bind {
            path,
            recursive: true,
        } => format!("recursive bind of {path:?}"),
        MountSource::Cgroup(CgroupMount::V2) => "cgroup2".into(),
        MountSource::Cgroup(CgroupMount::V2Bind { path }) => format!("bind of cgroup {path:?}"),
        MountSource::Cgroup(CgroupMount::V1 { .. }) => "cgroup hierarchies (v1)".into(),
    };
    let data = if mount.data.is_empty() {
        String::new()
    } else {
        format!(", data {:?}", mount.data)
    };
    format!(
        "{what} at {:?} (flags {:#x}{data})",
        mount.destination, mount.flags
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(flags: u64, propagation: &[u64]) -> MountSpec {
        MountSpec {
            destination: "/data".into(),
            source: MountSource::Bind {
                path: "/srv".into(),
                recursive: true,
            },
            flags,
            propagation: propagation.to_vec(),
            recursive_set: 0,
            recursive_clear: 0,
            data: String::new(),
            copy_up: false,
        }
    }

    #[test]
    fn a_single_mount_needs_one_call_for_flags_and_propagation() {
        let mount = mount(libc::MS_RDONLY | libc::MS_NOSUID, &[libc::MS_PRIVATE | MS_REC]);
        let calls = attribute_calls(&mount, false, mount.flags);
        assert_eq!(
            calls,
            [(
                false,
                MountAttributes {
                    set: 3,
                    propagation: libc::MS_PRIVATE,
                    ..Default::default()
                }
            )]
        );
        let deep: Vec<bool> = attribute_calls(&mount, true, mount.flags)
            .iter()
            .map(|call| call.0)
            .collect();
        assert_eq!(
            deep,
            [false, true],
            "flags are for the top, propagation for the tree"
        );
    }

    #[test]
    fn two_propagation_changes_keep_their_order() {
        let mount = mount(0, &[libc::MS_SLAVE, libc::MS_SHARED]);
        let order: Vec<u64> = attribute_calls(&mount, false, 0)
            .iter()
            .map(|(_, call)| call.propagation)
            .collect();
        assert_eq!(order, [libc::MS_SLAVE, libc::MS_SHARED]);
    }

    #[test]
    fn nothing_asked_is_no_call() {
        assert!(attribute_calls(&mount(0, &[]), true, 0).is_empty());
    }

    #[test]
    fn an_access_time_mode_replaces_the_other() {
        let (set, clear) = flag_attributes(libc::MS_NOATIME | libc::MS_NODIRATIME);
        assert_eq!(set, MOUNT_ATTR_NOATIME | MOUNT_ATTR_NODIRATIME);
        assert_eq!(clear, MOUNT_ATTR__ATIME);
        assert_eq!(flag_attributes(libc::MS_RELATIME), (0, MOUNT_ATTR__ATIME));
    }

    #[test]
    fn an_error_names_source_destination_flags_and_options() {
        let mut mount = mount(1, &[]);
        mount.source = MountSource::Filesystem {
            fstype: "tmpfs".into(),
            source: "tmpfs".into(),
        };
        mount.data = "size=1k".into();
        assert_eq!(
            describe(&mount),
            r#"tmpfs at "/data" (flags 0x1, data "size=1k")"#
        );
    }
}
