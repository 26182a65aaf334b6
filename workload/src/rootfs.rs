//! A container's root: its mount tree is built in the caller's new mount namespace, then entered.
//!
//! [`build`] leaves the host's tree in sight (hooks `createContainer` run there), [`PreparedRoot::enter`]
//! makes the container's the only one. The caller has made the mount namespace (and the user, pid,
//! cgroup, network, ipc and uts namespaces it wants), has a procfs of the outside at `/proc`, and has one
//! thread. OCI: config.md "Root", "Mounts", "Hostname"; config-linux.md "Rootfs Mount Propagation",
//! "Sysctl"; runtime.md "Lifecycle" steps 3 to 6.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use moat_protocol::workload_spec::{RootSpec, WorkloadSpec};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags},
};

use crate::{
    devices::{self, DeviceError},
    masks::{self, MaskError},
    mounts::{self, MountError, ReadonlyLater},
    path::Root,
    procfs::{Procfs, sysctl_path},
    sys::{self, MountAttributes},
};

/// Why a root could not be built or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount propagation of the tree in sight.
    #[error("cannot change the mount propagation of {path:?}")]
    Propagation {
        /// Mount point.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The root file system itself.
    #[error("cannot mount the root filesystem {path:?}: {step}")]
    Root {
        /// [`RootSpec::path`].
        path: String,
        /// What was being done.
        step: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A mount of the configuration.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A device or link.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A masked or read-only path.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A read-only tmpfs.
    #[error("cannot make a tmpfs read-only")]
    Readonly(#[source] io::Error),
    /// The host or domain name.
    #[error("cannot set the {what} to {name:?}")]
    Name {
        /// `hostname` or `domainname`.
        what: &'static str,
        /// The name.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter.
    #[error("cannot set kernel parameter {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// What it was to become.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A container's mount tree, ready to become `/`.
#[derive(Debug)]
pub struct PreparedRoot {
    root: Root,
    readonly_later: Vec<ReadonlyLater>,
}

/// Builds the container's mount tree: propagation, the root as a mount of its own, mounts in order,
/// devices and links. The file mode mask is 0 afterwards; [`crate::exec::prepare`] sets the container's.
///
/// # Errors
/// When a step fails; the mount namespace is then half built and of no further use.
pub fn build(spec: &WorkloadSpec) -> Result<PreparedRoot, Error> {
    rustix::process::umask(Mode::empty());
    detach_from_host(&spec.root)?;
    let root = mount_root(&spec.root)?;
    let mut readonly_later = Vec::new();
    for mount in &spec.mounts {
        readonly_later.extend(mounts::apply(&root, mount)?);
    }
    devices::make(&root, spec)?;
    Ok(PreparedRoot { root, readonly_later })
}

impl PreparedRoot {
    /// The container's root directory (`O_PATH`), for hooks and checks of the caller.
    pub fn directory(&self) -> impl AsFd + '_ {
        &self.root
    }

    /// Names the host, sets kernel parameters, protects and hides paths, and makes the tree `/`, with the
    /// old one gone. The working directory is then the new root.
    ///
    /// # Errors
    /// When a step fails; the process must end then.
    pub fn enter(self, spec: &WorkloadSpec) -> Result<(), Error> {
        set_names(spec)?;
        set_sysctls(&self.root, &spec.sysctls)?;
        masks::protect(&self.root, &spec.readonly_paths)?;
        masks::hide(&self.root, &spec.masked_paths)?;
        for tmpfs in &self.readonly_later {
            tmpfs.apply().map_err(Error::Readonly)?;
        }
        if spec.root.readonly {
            mounts::set_readonly(&self.root).map_err(at(&spec.root, "make it read-only"))?;
        }
        if spec.root.no_pivot {
            self.move_and_chroot(&spec.root)?
        } else {
            self.pivot(&spec.root)?
        }
        set_final_propagation(&spec.root)
    }

    /// `pivot_root(".", ".")` puts the old root over the new one, from where it is detached
    /// (pivot_root(2), "NOTES").
    fn pivot(&self, root: &RootSpec) -> Result<(), Error> {
        rustix::process::fchdir(&self.root).map_err(at(root, "change into it"))?;
        let old = if is_shared(root) {
            Some(open_old_root(root)?)
        } else {
            None
        };
        rustix::process::pivot_root(".", ".").map_err(at(root, "pivot_root"))?;
        if let Some(old) = old {
            // the old tree still has peers on the host, which must not see it go
            rustix::process::fchdir(&old).map_err(at(root, "change into the old root"))?;
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            rustix::mount::mount_change(".", slave).map_err(at(root, "part the old root from its peers"))?;
        }
        rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at(root, "detach the old root"))?;
        rustix::process::chdir("/").map_err(at(root, "change into the new root"))
    }

    /// Where `pivot_root` is impossible (a ramfs root). The old tree stays below the new one, so procfs
    /// and sysfs of the outside, which nothing masks, are taken away first.
    fn move_and_chroot(&self, root: &RootSpec) -> Result<(), Error> {
        // last: the path of the root's descriptor leads through the outer /proc
        rustix::process::fchdir(&self.root).map_err(at(root, "change into it"))?;
        for outside in ["/sys", "/proc"] {
            remove_or_cover(outside).map_err(at(root, "take /proc and /sys of the outside away"))?;
        }
        rustix::mount::mount_move(".", "/").map_err(at(root, "move it to /"))?;
        rustix::process::chroot(".").map_err(at(root, "chroot"))?;
        rustix::process::chdir("/").map_err(at(root, "change into the new root"))
    }
}

fn at<E: Into<io::Error>>(root: &RootSpec, step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Root {
        path: root.path.clone(),
        step,
        source: source.into(),
    }
}

/// Unmounts a kernel file system of the outside; where a user namespace locks it, hides it.
fn remove_or_cover(path: &str) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EINVAL: locked, or nothing is mounted there
        Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let magic = rustix::fs::statfs(path)?.f_type;
    if magic != rustix::fs::PROC_SUPER_MAGIC && magic != SYSFS_MAGIC {
        return Ok(());
    }
    Ok(mounts::mount_filesystem(
        "tmpfs",
        path,
        "tmpfs",
        libc::MS_RDONLY,
        "size=0k,nr_inodes=2",
    )?)
}

/// `SYSFS_MAGIC` of `linux/magic.h`.
const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;

fn is_shared(root: &RootSpec) -> bool {
    root.propagation & libc::MS_SHARED != 0
}

fn open_old_root(root: &RootSpec) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).map_err(at(root, "open the old root"))
}

/// Mounts made from now on must not appear on the host. A container that asks for a shared root keeps
/// its peers there, which is what it asks for; only the mount that holds the root is made private, as
/// `pivot_root` demands.
fn detach_from_host(root: &RootSpec) -> Result<(), Error> {
    let change = |path: &str, flags| rustix::mount::mount_change(path, flags);
    let failed = |path: &str, errno: Errno| Error::Propagation {
        path: path.to_owned(),
        source: errno.into(),
    };
    if !is_shared(root) {
        let kind = if root.propagation & libc::MS_PRIVATE != 0 {
            MountPropagationFlags::PRIVATE
        } else {
            MountPropagationFlags::DOWNSTREAM
        };
        return change("/", kind | MountPropagationFlags::REC).map_err(|errno| failed("/", errno));
    }
    let mut path = root.path.as_str();
    loop {
        match change(path, MountPropagationFlags::PRIVATE) {
            Ok(()) => return Ok(()),
            // not a mount point: its parent may be
            Err(Errno::INVAL) if path.len() > 1 => {
                path = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
                path = if path.is_empty() { "/" } else { path };
            }
            Err(errno) => return Err(failed(path, errno)),
        }
    }
}

/// A copy of the tree at the root's path is mounted over it, so that it is a mount of its own.
fn mount_root(spec: &RootSpec) -> Result<Root, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, &spec.path, flags, Mode::empty()).map_err(at(spec, "open it"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&place, "", flags).map_err(at(spec, "clone its mounts"))?;
    if !is_shared(spec) {
        let private = MountAttributes {
            propagation: libc::MS_PRIVATE,
            ..MountAttributes::default()
        };
        sys::mount_setattr(tree.as_fd(), c"", true, &private).map_err(at(spec, "make it private"))?;
    }
    mounts::attach(&tree, &place).map_err(at(spec, "attach it"))?;
    Ok(Root::new(tree))
}

fn set_names(spec: &WorkloadSpec) -> Result<(), Error> {
    if let Some(name) = &spec.hostname {
        let result = rustix::system::sethostname(name.as_bytes());
        result.map_err(|errno| Error::Name {
            what: "hostname",
            name: name.clone(),
            source: errno.into(),
        })?;
    }
    if let Some(name) = &spec.domainname {
        let result = rustix::system::setdomainname(name.as_bytes());
        result.map_err(|errno| Error::Name {
            what: "domainname",
            name: name.clone(),
            source: errno.into(),
        })?;
    }
    Ok(())
}

fn set_sysctls(root: &Root, sysctls: &[(String, String)]) -> Result<(), Error> {
    let mut procfs = None;
    for (name, value) in sysctls {
        let failed = |source| Error::Sysctl {
            name: name.clone(),
            value: value.clone(),
            source,
        };
        let procfs = match &procfs {
            Some(procfs) => procfs,
            None => procfs.insert(Procfs::open(root.as_fd()).map_err(failed)?),
        };
        procfs.write(&sysctl_path(name), value).map_err(failed)?;
    }
    Ok(())
}

/// Private is what it already is.
fn set_final_propagation(root: &RootSpec) -> Result<(), Error> {
    let kind = root.propagation & (libc::MS_SHARED | libc::MS_SLAVE | libc::MS_UNBINDABLE);
    if kind == 0 {
        return Ok(());
    }
    let flags = u32::try_from(kind | root.propagation & libc::MS_REC).unwrap_or(0);
    rustix::mount::mount_change("/", MountPropagationFlags::from_bits_retain(flags)).map_err(|errno| {
        Error::Propagation {
            path: "/".into(),
            source: errno.into(),
        }
    })
}
