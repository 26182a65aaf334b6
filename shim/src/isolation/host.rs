//! What a microVM needs of the host: `/dev/kvm`, a guest kernel and guest-init.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The KVM device.
pub const KVM_DEVICE: &str = "/dev/kvm";
/// Environment variable that names the guest kernel (an uncompressed ELF vmlinux).
pub const KERNEL_VARIABLE: &str = "MOAT_GUEST_KERNEL";
/// Environment variable that names guest-init.
pub const INIT_VARIABLE: &str = "MOAT_GUEST_INIT";

const KERNEL_NAME: &str = "vmlinux";
const INIT_NAME: &str = "guest-init";
/// Where `make install` and packages put the guest's files, after the folder beside the binary.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/local/lib/moat", "/usr/lib/moat"];

/// Why no microVM can be started here.
#[derive(Debug, thiserror::Error)]
pub enum VmObstacle {
    /// There is no KVM.
    #[error("{KVM_DEVICE} does not exist")]
    NoKvmDevice,
    /// It may not be opened.
    #[error("cannot open {KVM_DEVICE}")]
    KvmNotOpened(#[source] io::Error),
    /// A file of the guest is in none of the known places.
    #[error("no {what} found: looked at {}", list(tried))]
    GuestFileMissing {
        /// Which file.
        what: GuestFile,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A file of the guest is there and can't be read.
    #[error("cannot read the {what} {}", path.display())]
    GuestFileUnreadable {
        /// Which file.
        what: GuestFile,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VmObstacle {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            VmObstacle::NoKvmDevice => format!(
                "load kvm_amd or kvm_intel (or enable nested virtualisation), or ask for --isolation process; \
                 without {KVM_DEVICE} the lab (tests/lab/run) still runs microVMs"
            ),
            VmObstacle::KvmNotOpened(error) if error.kind() == ErrorKind::PermissionDenied => {
                "add the user to group kvm, or ask for --isolation process".to_owned()
            }
            VmObstacle::KvmNotOpened(_) => "see moat doctor, or ask for --isolation process".to_owned(),
            VmObstacle::GuestFileMissing { what, .. } | VmObstacle::GuestFileUnreadable { what, .. } => {
                format!("run make install, or set {} to the file", what.variable())
            }
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// The files that make a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestFile {
    /// Uncompressed ELF vmlinux.
    Kernel,
    /// The static program that is PID 1 of the guest.
    Init,
}

impl std::fmt::Display for GuestFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            GuestFile::Kernel => "guest kernel",
            GuestFile::Init => "guest-init",
        })
    }
}

impl GuestFile {
    fn variable(self) -> &'static str {
        match self {
            GuestFile::Kernel => KERNEL_VARIABLE,
            GuestFile::Init => INIT_VARIABLE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            GuestFile::Kernel => KERNEL_NAME,
            GuestFile::Init => INIT_NAME,
        }
    }

    /// Where this file is looked for, first match first: the environment variable alone when it is
    /// set, else `../lib/moat` beside the running binary and the system's folders.
    pub fn candidates(self) -> Vec<PathBuf> {
        if let Some(path) = std::env::var_os(self.variable()) {
            return vec![PathBuf::from(path)];
        }
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| Some(exe.parent()?.parent()?.join("lib/moat").join(self.name())));
        beside
            .into_iter()
            .chain(
                SYSTEM_FOLDERS
                    .iter()
                    .map(|folder| Path::new(folder).join(self.name())),
            )
            .collect()
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// When it is nowhere, or can't be read.
    pub fn open(self) -> Result<(File, PathBuf), VmObstacle> {
        let tried = self.candidates();
        for path in &tried {
            match open_regular(path) {
                Ok(file) => return Ok((file, path.clone())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(VmObstacle::GuestFileUnreadable {
                        what: self,
                        path: path.clone(),
                        source,
                    });
                }
            }
        }
        Err(VmObstacle::GuestFileMissing { what: self, tried })
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

/// What a VM payload is made from, opened while the host's files can still be seen: inside the cell,
/// and behind its device filter, they cannot.
#[derive(Debug)]
pub struct VmPrerequisites {
    /// `/dev/kvm`, read-write, close-on-exec.
    pub kvm: File,
    /// The guest kernel.
    pub kernel: File,
    /// Where it was found, for errors.
    pub kernel_path: PathBuf,
    /// guest-init.
    pub init: File,
}

impl VmPrerequisites {
    /// Opens all of them.
    ///
    /// # Errors
    /// The first obstacle.
    pub fn open() -> Result<VmPrerequisites, VmObstacle> {
        let kvm = open_kvm()?;
        let (kernel, kernel_path) = GuestFile::Kernel.open()?;
        let (init, _) = GuestFile::Init.open()?;
        Ok(VmPrerequisites {
            kvm,
            kernel,
            kernel_path,
            init,
        })
    }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// When it is not there or may not be opened.
pub fn open_kvm() -> Result<File, VmObstacle> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(KVM_DEVICE)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => VmObstacle::NoKvmDevice,
            _ => VmObstacle::KvmNotOpened(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_obstacle_has_a_remedy_that_names_what_to_change() {
        let missing = VmObstacle::GuestFileMissing {
            what: GuestFile::Kernel,
            tried: vec![],
        };
        assert!(missing.remedy().contains(KERNEL_VARIABLE));
        let denied = VmObstacle::KvmNotOpened(io::Error::from(ErrorKind::PermissionDenied));
        assert!(denied.remedy().contains("group kvm"));
        assert!(VmObstacle::NoKvmDevice.remedy().contains("--isolation process"));
    }

    #[test]
    fn guest_files_are_looked_for_beside_the_binary_first() {
        let candidates = GuestFile::Init.candidates();
        assert!(candidates.len() >= 2);
        assert!(candidates[0].ends_with("lib/moat/guest-init"), "{candidates:?}");
    }
}
