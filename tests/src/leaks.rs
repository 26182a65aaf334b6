//! What a container left behind: processes, mounts, cgroups, folders. Found by its traces (its id and its
//! paths), so trials can run side by side; and, for a machine of one's own, by counting everything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Asks `find` until it finds nothing, for as long as things may take to end by themselves.
pub fn after_a_moment(find: impl Fn() -> Vec<String>) -> Vec<String> {
    const MOMENT: Duration = Duration::from_secs(3);
    let deadline = Instant::now() + MOMENT;
    loop {
        let found = find();
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Traces of the containers `ids`, of bundles under `home`, and of state under `root`.
#[must_use]
pub fn of(ids: &[String], home: &Path, root: &Path) -> Vec<String> {
    let mut found = processes(ids, home);
    found.extend(mounts(home));
    let is_ours = |path: &Path| ids.iter().any(|id| path.to_string_lossy().contains(id.as_str()));
    found.extend(
        cgroups()
            .iter()
            .filter(|path| is_ours(path))
            .map(|path| format!("cgroup {}", path.display())),
    );
    found.extend(
        entries(root)
            .iter()
            .map(|path| format!("in the state folder: {}", path.display())),
    );
    for folder in ["/run", "/tmp", "/dev/shm"] {
        let ours = entries(Path::new(folder))
            .into_iter()
            .filter(|path| path != home && is_ours(path));
        found.extend(ours.map(|path| format!("file {}", path.display())));
    }
    found
}

/// Everything there is on this machine, in a form that can be compared: for tests that run alone.
#[must_use]
pub fn census() -> BTreeSet<String> {
    let mut all: BTreeSet<String> = cgroups()
        .into_iter()
        .map(|path| format!("cgroup {}", path.display()))
        .collect();
    all.extend(mount_points().into_iter().map(|point| format!("mount {point}")));
    for process in entries(Path::new("/proc")) {
        let exe = fs::read_link(process.join("exe")); // neither kernel threads nor zombies have one
        all.extend(exe.map(|exe| format!("process {} {}", process.display(), exe.display())));
    }
    for folder in ["/run", "/tmp", "/dev/shm"] {
        all.extend(
            entries(Path::new(folder))
                .iter()
                .map(|path| format!("file {}", path.display())),
        );
    }
    let own = entries(Path::new("/proc/self/fd")).len();
    all.insert(format!("own descriptors {own}"));
    all
}

fn processes(ids: &[String], home: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let pid = process
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let text = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        let (cmdline, cgroup) = (text("cmdline"), text("cgroup"));
        if cmdline.is_empty() {
            continue; // a kernel thread, or a zombie, which is its parent's to reap
        }
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        let traced = ids
            .iter()
            .any(|id| cmdline.contains(id) || String::from_utf8_lossy(&cgroup).contains(id));
        if traced || holds(&process, home) {
            found.push(format!("process {pid}: {cmdline}"));
        }
    }
    found
}

/// Whether a process has its root, its working folder, its program or a descriptor under `home`.
fn holds(process: &Path, home: &Path) -> bool {
    let mut links = entries(&process.join("fd"));
    links.extend(["root", "cwd", "exe"].map(|name| process.join(name)));
    links
        .iter()
        .filter_map(|link| fs::read_link(link).ok())
        .any(|target| target.starts_with(home))
}

fn mounts(home: &Path) -> Vec<String> {
    let home = home.to_string_lossy();
    mount_points()
        .into_iter()
        .filter(|point| point.contains(&*home))
        .map(|point| format!("mount {point}"))
        .collect()
}

fn mount_points() -> Vec<String> {
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

fn cgroups() -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                open.push(entry.path());
                all.push(entry.path());
            }
        }
    }
    all
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}
