//! Options of a mount: which are flags, which change propagation, which apply to the whole tree, and
//! which are left for the file system (config.md "Mounts", Linux mount options).

use moat_protocol::workload_spec::MountSpec;
use nix::libc;

/// `MOUNT_ATTR_*` of `mount_setattr(2)`, which libc spells with its own types.
mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    pub const ATIME: u64 = 0x70;
    pub const RELATIME: u64 = 0x0;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `MS_NOSYMFOLLOW`, `MS_LAZYTIME` (`linux/mount.h`); libc has them for some targets only.
const MS_NOSYMFOLLOW: u64 = 1 << 8;
const MS_LAZYTIME: u64 = 1 << 25;

/// What an option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Sets `MS_*`.
    Set(u64),
    /// Clears `MS_*`.
    Clear(u64),
    /// Bind mount, with `true` of a whole tree.
    Bind(bool),
    /// Changes propagation.
    Propagation(u64),
    /// Sets `MOUNT_ATTR_*` on the whole tree.
    SetTree(u64),
    /// Clears `MOUNT_ATTR_*` on the whole tree.
    ClearTree(u64),
    /// Copies what the image has there into the new tmpfs.
    CopyUp,
    /// Says nothing.
    Nothing,
}

use Effect::{Bind, Clear, ClearTree, CopyUp, Nothing, Propagation, Set, SetTree};

const REC: u64 = libc::MS_REC;

/// Every option that moat knows, in alphabetical order, so that `features` can print it as it is.
const OPTIONS: &[(&str, Effect)] = &[
    ("acl", Set(libc::MS_POSIXACL)),
    ("async", Clear(libc::MS_SYNCHRONOUS)),
    ("atime", Clear(libc::MS_NOATIME)),
    ("bind", Bind(false)),
    ("defaults", Nothing),
    ("dev", Clear(libc::MS_NODEV)),
    ("diratime", Clear(libc::MS_NODIRATIME)),
    ("dirsync", Set(libc::MS_DIRSYNC)),
    ("exec", Clear(libc::MS_NOEXEC)),
    ("iversion", Set(libc::MS_I_VERSION)),
    ("lazytime", Set(MS_LAZYTIME)),
    ("loud", Clear(libc::MS_SILENT)),
    ("mand", Set(libc::MS_MANDLOCK)),
    ("noacl", Clear(libc::MS_POSIXACL)),
    ("noatime", Set(libc::MS_NOATIME)),
    ("nodev", Set(libc::MS_NODEV)),
    ("nodiratime", Set(libc::MS_NODIRATIME)),
    ("noexec", Set(libc::MS_NOEXEC)),
    ("noiversion", Clear(libc::MS_I_VERSION)),
    ("nolazytime", Clear(MS_LAZYTIME)),
    ("nomand", Clear(libc::MS_MANDLOCK)),
    ("norelatime", Clear(libc::MS_RELATIME)),
    ("nostrictatime", Clear(libc::MS_STRICTATIME)),
    ("nosuid", Set(libc::MS_NOSUID)),
    ("nosymfollow", Set(MS_NOSYMFOLLOW)),
    ("private", Propagation(libc::MS_PRIVATE)),
    ("ratime", ClearTree(attr::NOATIME)),
    ("rbind", Bind(true)),
    ("rdev", ClearTree(attr::NODEV)),
    ("rdiratime", ClearTree(attr::NODIRATIME)),
    ("relatime", Set(libc::MS_RELATIME)),
    ("remount", Set(libc::MS_REMOUNT)),
    ("rexec", ClearTree(attr::NOEXEC)),
    ("rnoatime", SetTree(attr::NOATIME)),
    ("rnodev", SetTree(attr::NODEV)),
    ("rnodiratime", SetTree(attr::NODIRATIME)),
    ("rnoexec", SetTree(attr::NOEXEC)),
    ("rnorelatime", ClearTree(attr::RELATIME)),
    ("rnostrictatime", ClearTree(attr::STRICTATIME)),
    ("rnosuid", SetTree(attr::NOSUID)),
    ("rnosymfollow", SetTree(attr::NOSYMFOLLOW)),
    ("ro", Set(libc::MS_RDONLY)),
    ("rprivate", Propagation(libc::MS_PRIVATE | REC)),
    ("rrelatime", SetTree(attr::RELATIME)),
    ("rro", SetTree(attr::RDONLY)),
    ("rrw", ClearTree(attr::RDONLY)),
    ("rshared", Propagation(libc::MS_SHARED | REC)),
    ("rslave", Propagation(libc::MS_SLAVE | REC)),
    ("rstrictatime", SetTree(attr::STRICTATIME)),
    ("rsuid", ClearTree(attr::NOSUID)),
    ("rsymfollow", ClearTree(attr::NOSYMFOLLOW)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE | REC)),
    ("rw", Clear(libc::MS_RDONLY)),
    ("shared", Propagation(libc::MS_SHARED)),
    ("silent", Set(libc::MS_SILENT)),
    ("slave", Propagation(libc::MS_SLAVE)),
    ("strictatime", Set(libc::MS_STRICTATIME)),
    ("suid", Clear(libc::MS_NOSUID)),
    ("symfollow", Clear(MS_NOSYMFOLLOW)),
    ("sync", Set(libc::MS_SYNCHRONOUS)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
];

/// Options as they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `MS_*` without propagation, `MS_BIND` and `MS_REC`.
    pub flags: u64,
    /// Whether it is a bind mount, and whether of the whole tree.
    pub bind: Option<bool>,
    /// `MS_*` propagation changes, in order.
    pub propagation: Vec<u64>,
    /// `MOUNT_ATTR_*` to set on the whole tree.
    pub recursive_set: u64,
    /// `MOUNT_ATTR_*` to clear on the whole tree.
    pub recursive_clear: u64,
    /// What is left for the file system.
    pub data: Vec<String>,
    /// `tmpcopyup`.
    pub copy_up: bool,
}

/// The names of all options.
pub fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name)
}

/// Sorts options by what they do. Later options win over earlier ones.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        match OPTIONS.iter().find(|(name, _)| name == option) {
            Some((_, effect)) => parsed.apply(*effect),
            None => parsed.data.push(option.clone()),
        }
    }
    parsed
}

impl MountOptions {
    fn apply(&mut self, effect: Effect) {
        match effect {
            Set(flag) => self.flags |= flag,
            Clear(flag) => self.flags &= !flag,
            Bind(recursive) => self.bind = Some(recursive || self.bind == Some(true)),
            Propagation(flag) => self.propagation.push(flag),
            SetTree(attribute) => {
                self.recursive_clear &= !attribute;
                self.recursive_set |= attribute;
                // The access time modes are one field of several bits: setting one clears the field.
                if attribute & attr::ATIME != 0 || attribute == attr::RELATIME {
                    self.recursive_set = self.recursive_set & !attr::ATIME | attribute;
                    self.recursive_clear |= attr::ATIME;
                }
            }
            ClearTree(attribute) => {
                self.recursive_set &= !attribute;
                // mount_setattr(2) takes the field of access time modes whole or not at all.
                let whole = if attribute & attr::ATIME != 0 {
                    attribute | attr::ATIME
                } else {
                    attribute
                };
                self.recursive_clear |= whole;
            }
            CopyUp => self.copy_up = true,
            Nothing => {}
        }
    }

    /// Puts the options into a mount.
    pub fn into_spec(
        self,
        destination: String,
        source: moat_protocol::workload_spec::MountSource,
    ) -> MountSpec {
        MountSpec {
            destination,
            source,
            flags: self.flags,
            propagation: self.propagation,
            recursive_set: self.recursive_set,
            recursive_clear: self.recursive_clear,
            data: self.data.join(","),
            copy_up: self.copy_up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> MountOptions {
        parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_table_is_sorted_and_without_doubles() {
        assert!(OPTIONS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = parsed("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(options.flags, libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert_eq!(parsed("ro,rw").flags, 0);
        assert_eq!(parsed("rw,ro").flags, libc::MS_RDONLY);
        let tree = parsed("rro,rrw");
        assert_eq!((tree.recursive_set, tree.recursive_clear), (0, attr::RDONLY));
    }

    #[test]
    fn rbind_wins_over_bind_in_any_order() {
        assert_eq!(parsed("bind,rbind").bind, Some(true));
        assert_eq!(parsed("rbind,bind").bind, Some(true));
        assert_eq!(parsed("bind").bind, Some(false));
        assert_eq!(parsed("ro").bind, None);
    }

    #[test]
    fn propagation_keeps_its_order() {
        assert_eq!(
            parsed("rslave,shared").propagation,
            [libc::MS_SLAVE | REC, libc::MS_SHARED]
        );
    }

    #[test]
    fn access_time_of_a_tree_replaces_the_whole_field() {
        let options = parsed("rnoatime,rstrictatime");
        assert_eq!(options.recursive_set, attr::STRICTATIME);
        assert_eq!(options.recursive_clear, attr::ATIME);
        assert_eq!(parsed("ratime").recursive_clear, attr::ATIME);
        assert_eq!(parsed("rrelatime").recursive_clear, attr::ATIME);
    }

    #[test]
    fn every_option_does_something_or_is_defaults() {
        for (name, _) in OPTIONS {
            let alone = parsed(name);
            assert!(alone.data.is_empty(), "{name}");
            if name.starts_with("no")
                && !matches!(
                    *name,
                    "noacl" | "noiversion" | "nolazytime" | "nomand" | "norelatime" | "nostrictatime"
                )
            {
                assert_ne!(alone.flags, 0, "{name}");
            }
        }
    }
}
