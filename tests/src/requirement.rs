//! What a scenario needs of the machine. A need that is not met is a skip, printed with its reason and
//! counted; `REQUIRE=kvm,root` turns skips for these needs into failures.

use std::env;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// A property of the machine, or of the runtime under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// A KVM on which a guest kernel comes up.
    Kvm,
    /// User id 0.
    Root,
    /// `/sys/fs/cgroup` is the cgroup v2 hierarchy.
    Cgroup2,
    /// The runtime is moat: the claim is about moat only.
    Moat,
    /// The isolation is `vm`: the claim is about guests only.
    Vm,
}

impl Requirement {
    /// The name by which `REQUIRE` speaks of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Root => "root",
            Self::Cgroup2 => "cgroup2",
            Self::Moat => "moat",
            Self::Vm => "vm",
        }
    }

    /// Why the machine does not meet it, `None` when it does. `Moat` and `Vm` are the runner's to judge.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => kvm_missing(),
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "needs user id 0".to_owned()),
            Self::Cgroup2 => (!cgroup2()).then(|| "/sys/fs/cgroup is not the cgroup v2 hierarchy".to_owned()),
            Self::Moat | Self::Vm => None,
        }
    }

    /// Whether `REQUIRE` names it.
    #[must_use]
    pub fn demanded(self) -> bool {
        env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|word| word.trim() == self.name()))
    }
}

/// Whether `/sys/fs/cgroup` is cgroup v2.
#[must_use]
pub fn cgroup2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A KVM without SVM or VMX in the CPU's flags emulates the guest's kernel mode: no unmodified kernel comes up.
fn kvm_missing() -> Option<String> {
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("cannot open /dev/kvm: {e}"));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let virtual_cpu = flags
        .split_whitespace()
        .any(|flag| flag == "svm" || flag == "vmx");
    (!virtual_cpu).then(|| {
        "KVM emulates the guest's kernel mode here (no svm or vmx flag): use tests/lab/run".to_owned()
    })
}
