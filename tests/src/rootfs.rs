//! A root filesystem of static busybox and the probe, small enough to be made for every bundle.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the probe is in every root filesystem.
pub const PROBE: &str = "/bin/moat-test-probe";

/// The applets that scenarios use.
const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "chmod",
    "chown",
    "cp",
    "dd",
    "echo",
    "env",
    "false",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nproc",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "wc",
    "yes",
];

const FOLDERS: &[&str] = &[
    "bin", "dev", "etc", "proc", "sys", "tmp", "root", "work", "run", "var",
];

/// Makes a root filesystem at `at`. The two programs are links to `programs`, so a bundle costs no copy.
///
/// # Errors
/// Whatever the file system says.
pub fn make(at: &Path, programs: &Path) -> io::Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(at.join(folder))?;
    }
    fs::hard_link(programs.join("busybox"), at.join("bin/busybox"))?;
    fs::hard_link(programs.join("moat-test-probe"), at.join("bin/moat-test-probe"))?;
    for applet in APPLETS {
        symlink("busybox", at.join("bin").join(applet))?;
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(at.join("etc/group"), "root:x:0:\n")
}

/// Copies the two programs to where bundles can link to them.
///
/// # Errors
/// When one is missing: the text names the remedy.
pub fn copy_programs(to: &Path) -> io::Result<()> {
    let remedy = |path: &Path, remedy: &str| {
        let path = path.display().to_string();
        let remedy = remedy.to_owned();
        move |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}: {remedy}"))
    };
    let busybox = PathBuf::from(env::var_os("MOAT_TEST_BUSYBOX").unwrap_or_else(|| "/bin/busybox".into()));
    fs::copy(&busybox, to.join("busybox")).map_err(remedy(&busybox, "install the package busybox-static"))?;
    let probe = built("MOAT_TEST_PROBE", "moat-test-probe");
    fs::copy(&probe, to.join("moat-test-probe")).map_err(remedy(&probe, "`make test` builds it"))?;
    Ok(())
}

/// A program of ours: what `variable` names, else the one that the same workspace built for release.
#[must_use]
pub fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    // This test is target/PROFILE/deps/NAME-HASH.
    let target = env::current_exe()
        .ok()
        .and_then(|exe| exe.ancestors().nth(3).map(Path::to_owned));
    target
        .unwrap_or_else(|| PathBuf::from("target"))
        .join("release")
        .join(name)
}
