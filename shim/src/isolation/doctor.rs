//! `moat doctor`: what this host can do for each isolation, each line with a remedy where it falls
//! short. Nothing is changed on the host; the one thing that runs is a guest of a few instructions,
//! which tells a KVM on hardware from one that emulates the guest's kernel mode.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;

use moat_vmm::extensions;
use moat_vmm::speed::{self, KvmKind};

use super::host::{self, GuestFile};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, with a loss.
    Poor,
    /// Missing: the isolation named in the finding can't be had.
    Bad,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen.
    pub fact: String,
    /// What to do about it, when there is something to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, fact: impl Into<String>) -> Finding {
        Finding {
            subject,
            verdict: Verdict::Good,
            fact: fact.into(),
            remedy: None,
        }
    }

    fn poor(subject: &'static str, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            subject,
            verdict: Verdict::Poor,
            fact: fact.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn bad(subject: &'static str, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            subject,
            verdict: Verdict::Bad,
            fact: fact.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// All findings, and what follows from them for each isolation.
#[derive(Debug)]
pub struct Diagnosis {
    /// Lines in the order of the report.
    pub findings: Vec<Finding>,
    /// Whether containers can run as processes.
    pub process: bool,
    /// Whether microVMs can run.
    pub vm: bool,
    /// Whether microVMs start at a usable speed (false where KVM emulates guest kernel mode).
    pub vm_fast: bool,
}

/// Runs every check.
pub fn diagnose() -> Diagnosis {
    let mut findings = vec![kernel(), cgroups()];
    let namespaces = namespaces();
    let process = namespaces.verdict != Verdict::Bad;
    findings.push(namespaces);
    findings.push(user_namespaces());
    findings.push(overlay());
    findings.push(landlock());
    let (kvm, vm_fast) = kvm();
    let kvm_works = kvm.iter().all(|finding| finding.verdict != Verdict::Bad);
    findings.extend(kvm);
    let files = [
        guest_file("guest kernel", GuestFile::Kernel),
        guest_file("guest-init", GuestFile::Init),
    ];
    let files_there = files.iter().all(|finding| finding.verdict == Verdict::Good);
    findings.extend(files);
    findings.push(tun());
    Diagnosis {
        findings,
        process,
        vm: kvm_works && files_there,
        vm_fast: vm_fast && kvm_works && files_there,
    }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(version) if version >= (5, 14) => Finding::good("host kernel", release),
        _ => Finding::bad("host kernel", release, "moat needs Linux 5.14 or later"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn cgroups() -> Finding {
    const SUBJECT: &str = "cgroup";
    if let Ok(controllers) = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        return Finding::good(SUBJECT, format!("v2, controllers: {}", controllers.trim()));
    }
    if Path::new("/sys/fs/cgroup/memory").is_dir() || Path::new("/sys/fs/cgroup/pids").is_dir() {
        return Finding::poor(
            SUBJECT,
            "v1 (a process is moved into its cgroups after the clone, which costs about 9 ms a start)",
            "boot the host with systemd.unified_cgroup_hierarchy=1 for cgroup v2",
        );
    }
    Finding::poor(
        SUBJECT,
        "not mounted: limits cannot be set",
        "mount cgroup2 on /sys/fs/cgroup",
    )
}

fn namespaces() -> Finding {
    const NEEDED: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        return Finding::good("namespaces", NEEDED.join(" "));
    }
    Finding::bad(
        "namespaces",
        format!("missing: {}", missing.join(" ")),
        "use a kernel that has them (CONFIG_*_NS)",
    )
}

fn user_namespaces() -> Finding {
    const SUBJECT: &str = "user namespaces";
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces");
    match limit.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        None => Finding::poor(SUBJECT, "not in this kernel", "use a kernel with CONFIG_USER_NS"),
        Some(0) => Finding::poor(SUBJECT, "switched off", "sysctl user.max_user_namespaces=10000"),
        Some(limit) => Finding::good(SUBJECT, format!("up to {limit}")),
    }
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"))
    {
        return Finding::good("overlayfs", "available");
    }
    Finding::poor("overlayfs", "not registered with this kernel", "modprobe overlay")
}

fn landlock() -> Finding {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if modules.trim().split(',').any(|module| module == "landlock") {
        return Finding::good("Landlock", "active");
    }
    Finding::poor(
        "Landlock",
        "not active, or securityfs not mounted",
        "boot with lsm=landlock,... for one more wall around the VMM",
    )
}

fn kvm() -> (Vec<Finding>, bool) {
    let kvm = match host::open_kvm() {
        Ok(kvm) => kvm,
        Err(obstacle) => {
            let remedy = obstacle.remedy();
            let fact = crate::report::error::chain(&obstacle);
            return (vec![Finding::bad("KVM", fact, remedy)], false);
        }
    };
    let kind = match speed::kind() {
        KvmKind::Vmx => "Intel VMX (not yet tested on hardware)",
        KvmKind::Svm => "AMD SVM",
        KvmKind::Software => "without VMX or SVM: KVM in software",
    };
    let first = match extensions::missing(&kvm) {
        Ok(missing) if missing.is_empty() => {
            Finding::good("KVM", format!("{kind}; every extension needed is there"))
        }
        Ok(missing) => Finding::bad(
            "KVM",
            format!("{kind}; lacks {}", missing.join(", ")),
            "use a newer host kernel",
        ),
        Err(error) => Finding::bad("KVM", error.to_string(), "free file descriptors"),
    };
    let (second, fast) = guest_speed(kvm);
    (vec![first, second], fast)
}

fn guest_speed(kvm: File) -> (Finding, bool) {
    const SUBJECT: &str = "guest speed";
    const REMEDY: &str = "use a host with VMX or SVM, or the lab: tests/lab/run moat run --isolation vm ...";
    match speed::measure(kvm) {
        Ok(speed) => {
            let fact = format!(
                "{} million instructions/s in kernel mode",
                speed.instructions_per_second / 1_000_000
            );
            if speed.is_usable() {
                (Finding::good(SUBJECT, fact), true)
            } else {
                let fact = format!("{fact}: this KVM emulates it, no ordinary kernel comes up");
                (Finding::poor(SUBJECT, fact, REMEDY), false)
            }
        }
        Err(error) => {
            let fact = format!(
                "a guest of a few instructions does not run: {}",
                crate::report::error::chain(&error)
            );
            (Finding::bad(SUBJECT, fact, REMEDY), false)
        }
    }
}

fn guest_file(subject: &'static str, what: GuestFile) -> Finding {
    match what.open() {
        Ok((file, path)) => {
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            Finding::good(subject, format!("{} ({} KiB)", path.display(), size / 1024))
        }
        Err(obstacle) => {
            let remedy = obstacle.remedy();
            Finding::bad(subject, crate::report::error::chain(&obstacle), remedy)
        }
    }
}

fn tun() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        return Finding::good("tun", "/dev/net/tun");
    }
    Finding::poor(
        "tun",
        "/dev/net/tun does not exist: microVMs have no network",
        "modprobe tun",
    )
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Good => "ok  ",
                Verdict::Poor => "poor",
                Verdict::Bad => "bad ",
            };
            writeln!(formatter, "{mark}  {:<16} {}", finding.subject, finding.fact)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(formatter, "      {:<16} -> {remedy}", "")?;
            }
        }
        let answer = |can: bool| if can { "yes" } else { "no" };
        let vm = if self.vm && !self.vm_fast {
            "too slow to be useful"
        } else {
            answer(self.vm)
        };
        writeln!(
            formatter,
            "isolation process: {}; isolation vm: {vm}",
            answer(self.process)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read_as_versions() {
        assert_eq!(version("6.12.117-guest"), Some((6, 12)));
        assert_eq!(version("5.9.0"), Some((5, 9)));
        assert!(version("5.9.0") < Some((5, 14)));
        assert_eq!(version(""), None);
    }

    #[test]
    fn whatever_is_not_good_has_a_remedy() {
        for finding in diagnose().findings {
            assert_eq!(
                finding.remedy.is_some(),
                finding.verdict != Verdict::Good,
                "{finding:?}"
            );
        }
    }
}
