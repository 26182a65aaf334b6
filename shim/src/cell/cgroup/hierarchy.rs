//! Which cgroup hierarchies the host has mounted (cgroups(7)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, CGROUP2_SUPER_MAGIC};

/// Where everybody mounts cgroups.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Nothing.
    None,
    /// The cgroup2 tree alone.
    V2 {
        /// Where.
        mount: PathBuf,
    },
    /// v1 hierarchies, perhaps with the cgroup2 tree beside them ("hybrid").
    V1(Vec<Hierarchy>),
}

/// One hierarchy of v1, or the cgroup2 tree of a hybrid host, which has no controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers; `name=…` for a named one.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// Finds out.
///
/// # Errors
/// When `/proc/self/mountinfo` can't be read.
pub fn find() -> io::Result<Hierarchies> {
    let Ok(found) = statfs::statfs(MOUNT_POINT) else {
        return Ok(Hierarchies::None);
    };
    if found.filesystem_type() == CGROUP2_SUPER_MAGIC {
        return Ok(Hierarchies::V2 {
            mount: PathBuf::from(MOUNT_POINT),
        });
    }
    let hierarchies = parse(&fs::read("/proc/self/mountinfo")?);
    Ok(
        if hierarchies
            .iter()
            .any(|hierarchy| !hierarchy.controllers.is_empty())
        {
            Hierarchies::V1(hierarchies)
        } else {
            Hierarchies::None
        },
    )
}

const CONTROLLERS: [&str; 13] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
];

/// proc(5), mountinfo: `id parent major:minor root point options [tags…] - type source super-options`.
fn parse(mountinfo: &[u8]) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(separator) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let (Some(point), Some(&kind), Some(options)) = (
            fields.get(4),
            fields.get(separator + 1),
            fields.get(separator + 3),
        ) else {
            continue;
        };
        let mount = PathBuf::from(unescape(point));
        if !mount.starts_with(MOUNT_POINT) || mount == Path::new(MOUNT_POINT) {
            continue;
        }
        let controllers: Vec<String> = match kind {
            b"cgroup" => String::from_utf8_lossy(options)
                .split(',')
                .filter(|option| CONTROLLERS.contains(option) || option.starts_with("name="))
                .map(str::to_owned)
                .collect(),
            b"cgroup2" => Vec::new(),
            _ => continue,
        };
        if !hierarchies
            .iter()
            .any(|known| known.mount == mount || known.controllers == controllers)
        {
            hierarchies.push(Hierarchy { controllers, mount });
        }
    }
    hierarchies
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u8, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
                _ => None,
            })
        };
        match (*first, tail.first_chunk::<3>().and_then(|digits| octal(digits))) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            (byte, _) => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:22 / /proc rw,relatime shared:5 - proc proc rw
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 / /elsewhere/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_host_is_taken_apart() {
        let found: Vec<_> = parse(HYBRID.as_bytes())
            .into_iter()
            .map(|h| (h.controllers.join(","), h.mount.to_str().unwrap().to_owned()))
            .collect();
        let expected = [
            ("", "/sys/fs/cgroup/unified"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
        ];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn escaped_mount_points_are_read_back() {
        assert_eq!(unescape(br"/a\040b\134"), OsString::from(r"/a b\"));
        assert_eq!(unescape(br"/a\9"), OsString::from(r"/a\9"));
    }

    proptest::proptest! {
        #[test]
        fn any_mountinfo_is_read_without_panic(text in ".*") {
            parse(text.as_bytes());
        }
    }
}
