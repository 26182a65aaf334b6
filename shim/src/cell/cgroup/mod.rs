//! The container's cgroup (config-linux.md "Control groups"): one directory in the cgroup2 tree, or one
//! per hierarchy where the host still has v1.
//!
//! On v2 the container's init is cloned into its cgroup; on v1 the command line moves it there while it
//! mounts (a move waits some 9 ms for all CPUs on either version, `CLONE_INTO_CGROUP` does not). The
//! directories are planned first and recorded, then made, so that whatever ends moat in between can be
//! cleaned up from the record.

mod bpf;
pub mod devices;
mod error;
pub mod hierarchy;
pub mod remove;
mod v1;
mod v2;

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use moat_protocol::workload_spec::CgroupMount;
use rustix::fs::{Access, Mode, OFlags};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

pub use self::error::CgroupError;
use self::hierarchy::Hierarchies;
use crate::bundle::plan::Plan;
use crate::bundle::resources::Resources;

/// One file and what to write to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// v1: the controller whose hierarchy has the file. v2: not used.
    controller: &'static str,
    /// File name.
    file: Cow<'static, str>,
    /// Value.
    value: String,
    /// What to do where the kernel has no such file.
    missing: Missing,
}

/// What to do where the kernel has no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Missing {
    /// Fail: the limit would not hold.
    Fail,
    /// Go on: without the file there is nothing to limit.
    Skip,
    /// Write another file.
    Instead { file: Cow<'static, str>, value: String },
}

impl Setting {
    fn new(controller: &'static str, file: impl Into<Cow<'static, str>>, value: impl ToString) -> Setting {
        Setting {
            controller,
            file: file.into(),
            value: value.to_string(),
            missing: Missing::Fail,
        }
    }

    fn or(self, missing: Missing) -> Setting {
        Setting { missing, ..self }
    }
}

/// Default of `linux.resources.cpu.period`, in microseconds.
pub const DEFAULT_CPU_PERIOD: u64 = v2::DEFAULT_PERIOD;

/// What is written for these limits on cgroup v2: file name, value.
///
/// # Errors
/// [`CgroupError::Unsupported`] for a limit that v2 does not have.
pub fn v2_writes(resources: &Resources) -> Result<Vec<(String, String)>, CgroupError> {
    let settings = v2::settings(resources)?;
    Ok(settings
        .into_iter()
        .map(|setting| (setting.file.into_owned(), setting.value))
        .collect())
}

/// Which cgroups the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// None, or none that we may use.
    None,
    /// A directory in each of several hierarchies.
    V1,
    /// One directory.
    V2,
}

/// A container's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Controllers of the hierarchy; empty in the cgroup2 tree.
    pub controllers: Vec<String>,
    /// Mount point of the hierarchy.
    pub mount: PathBuf,
    /// The directory.
    pub path: PathBuf,
}

impl Directory {
    /// Whether the caller may make it: write into the nearest directory above that exists.
    fn can_be_made(&self) -> bool {
        let mut above = self.path.ancestors().skip(1);
        let existing = above.find(|path| path.exists());
        existing.is_some_and(|path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok())
    }
}

/// A container's cgroup, made or to be made; kept in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Version.
    pub version: Version,
    /// Its directories.
    pub directories: Vec<Directory>,
}

impl Cgroup {
    /// Decides where the container's cgroup is, without making it.
    ///
    /// # Errors
    /// When there is no hierarchy and limits are asked for.
    pub fn locate(plan: &Plan, systemd: bool) -> Result<Cgroup, CgroupError> {
        let named_by_slice = plan
            .cgroups_path
            .as_deref()
            .is_some_and(|path| path.matches(':').count() == 2);
        if systemd || named_by_slice {
            return Err(CgroupError::Systemd);
        }
        let hierarchies = hierarchy::find().map_err(CgroupError::Find)?;
        // Relative paths are taken from the root (config-linux.md: "relative to a runtime-determined
        // location"). The prefix keeps an id from naming a cgroup of somebody else.
        let path = plan
            .cgroups_path
            .clone()
            .unwrap_or_else(|| format!("moat-{}", plan.id));
        let path = path.trim_matches('/');
        let directory = |controllers: Vec<String>, mount: PathBuf| {
            let path = mount.join(path);
            Directory {
                controllers,
                mount,
                path,
            }
        };
        let cgroup = match hierarchies {
            Hierarchies::None if plan.resources.has_limits() => return Err(CgroupError::NoHierarchy),
            Hierarchies::None => Cgroup::none(),
            Hierarchies::V2 { mount } => Cgroup {
                version: Version::V2,
                directories: vec![directory(Vec::new(), mount)],
            },
            Hierarchies::V1(mounts) => Cgroup {
                version: Version::V1,
                directories: mounts
                    .into_iter()
                    .map(|h| directory(h.controllers, h.mount))
                    .collect(),
            },
        };
        // Without privileges and without limits to set, a container goes without a cgroup of its own.
        let may_do_without = !rustix::process::geteuid().is_root() && !plan.resources.has_limits();
        if may_do_without && !cgroup.directories.iter().all(Directory::can_be_made) {
            return Ok(Cgroup::none());
        }
        Ok(cgroup)
    }

    fn none() -> Cgroup {
        Cgroup {
            version: Version::None,
            directories: Vec::new(),
        }
    }

    /// Makes the directories. Gives back the one that init is to be cloned into, on v2.
    ///
    /// # Errors
    /// When a directory can't be made, or has processes in it.
    pub fn create(&self) -> Result<Option<OwnedFd>, CgroupError> {
        self.create_all()?;
        match (self.version, self.directories.first()) {
            (Version::V2, Some(directory)) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let opened = rustix::fs::open(&directory.path, flags, Mode::empty());
                let failed = |error: rustix::io::Errno| CgroupError::Create {
                    path: directory.path.clone(),
                    source: error.into(),
                };
                opened.map(Some).map_err(failed)
            }
            (Version::None | Version::V1 | Version::V2, _) => Ok(None),
        }
    }

    fn create_all(&self) -> Result<(), CgroupError> {
        for directory in &self.directories {
            match self.version {
                Version::V2 => v2::enable_controllers(&directory.mount, &directory.path)?,
                Version::V1 | Version::None => {}
            }
            make(&directory.mount, &directory.path)?;
            if directory
                .controllers
                .iter()
                .any(|controller| controller == "cpuset")
            {
                v1::inherit_cpuset(&directory.mount, &directory.path)?;
            }
        }
        Ok(())
    }

    /// Moves a process in, on v1; on v2 it was cloned into its place.
    ///
    /// # Errors
    /// When a hierarchy does not take it.
    pub fn join(&self, pid: Pid) -> Result<(), CgroupError> {
        match self.version {
            Version::None | Version::V2 => Ok(()),
            Version::V1 => {
                let pid = pid.as_raw_nonzero().to_string();
                self.directories
                    .iter()
                    .try_for_each(|directory| write(&directory.path.join("cgroup.procs"), &pid))
            }
        }
    }

    /// Sets the limits and the device filter.
    ///
    /// # Errors
    /// When a limit can't be set or does not exist here.
    pub fn limit(&self, resources: &Resources) -> Result<(), CgroupError> {
        let devices = devices::rules(&resources.devices)?;
        match self.version {
            Version::None => Ok(()),
            Version::V1 => {
                for setting in v1::device_settings(&devices)
                    .into_iter()
                    .chain(v1::settings(resources)?)
                {
                    let directory = self.directories.iter().find(|directory| {
                        directory
                            .controllers
                            .iter()
                            .any(|controller| controller == setting.controller)
                    });
                    match directory {
                        Some(directory) => apply(&directory.path, &setting)?,
                        // No hierarchy of devices: nothing on this host filters them.
                        None if setting.controller == "devices" => {}
                        None => {
                            return Err(CgroupError::Unsupported {
                                field: Cow::Owned(format!("({})", setting.file)),
                                reason: "its cgroup hierarchy is not mounted",
                            });
                        }
                    }
                }
                Ok(())
            }
            Version::V2 => {
                let settings = v2::settings(resources)?;
                self.directories.iter().try_for_each(|directory| {
                    settings
                        .iter()
                        .try_for_each(|setting| apply(&directory.path, setting))?;
                    v2::filter_devices(&directory.path, &devices)
                })
            }
        }
    }

    /// How a mount of type `cgroup` is to be provided on this kernel.
    pub fn mount_source(&self, own_namespace: bool) -> CgroupMount {
        let bind = |path: &Path| CgroupMount::V2Bind {
            path: path.to_string_lossy().into_owned(),
        };
        match (self.version, self.directories.first()) {
            (Version::V2, Some(directory)) if !own_namespace => bind(&directory.path),
            (Version::V2, _) => CgroupMount::V2,
            (Version::V1, _) => v1::mount_source(&self.directories),
            // Without a cgroup of its own the container sees the host's tree, as with runc: a new mount
            // of it, over the one that a bound /sys has there, is refused (EBUSY).
            (Version::None, _) => match hierarchy::find() {
                Ok(Hierarchies::V2 { mount }) => bind(&mount),
                Ok(Hierarchies::V1(_) | Hierarchies::None) | Err(_) => CgroupMount::V2,
            },
        }
    }
}

/// Makes the directory and those above it, and sees that nobody is in it.
fn make(mount: &Path, path: &Path) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Create {
        path: path.to_owned(),
        source,
    };
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound && path != mount => {
            fs::create_dir_all(path).map_err(failed)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path != mount => {
            if remove::processes(path)?.is_empty() {
                Ok(())
            } else {
                Err(CgroupError::InUse {
                    path: path.to_owned(),
                })
            }
        }
        Err(error) => Err(failed(error)),
    }
}

fn apply(directory: &Path, setting: &Setting) -> Result<(), CgroupError> {
    let written = write(&directory.join(&*setting.file), &setting.value);
    match written {
        Err(CgroupError::Write { source, .. }) if source.kind() == ErrorKind::NotFound => {
            match &setting.missing {
                Missing::Skip => Ok(()),
                Missing::Instead { file, value } => {
                    apply(directory, &Setting::new(setting.controller, file.clone(), value))
                }
                Missing::Fail => {
                    let file = setting.file.clone().into_owned();
                    Err(CgroupError::NoController {
                        path: directory.to_owned(),
                        file,
                    })
                }
            }
        }
        written => written,
    }
}

/// Writes a file of a cgroup in one piece, and never makes one.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let opened = OpenOptions::new().write(true).open(path);
    opened
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read {
        path: path.to_owned(),
        source,
    })
}
