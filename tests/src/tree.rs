//! A tree of files whose every property follows from a number: written by the probe inside, checked outside.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Modes with and without each of the special bits.
const MODES: [u32; 6] = [0o600, 0o644, 0o755, 0o444, 0o2755, 0o4711];
const PER_FOLDER: u32 = 100;

/// What file `n` of a tree is.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where, below the tree's root.
    pub path: PathBuf,
    /// Permission and special bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All of its bytes.
    pub content: String,
}

/// File `n`.
#[must_use]
pub fn leaf(n: u32) -> Leaf {
    let modes = u32::try_from(MODES.len()).expect("a short list");
    Leaf {
        path: format!("folder{}/file{n}", n / PER_FOLDER).into(),
        mode: MODES[usize::try_from(n % modes).expect("a small number")],
        uid: 1000 + n % 7,
        gid: 2000 + n % 11,
        content: format!("this is file {n}\n"),
    }
}

/// Writes files 0 to `count`.
///
/// # Errors
/// Whatever the file system says.
pub fn write(root: &Path, count: u32) -> io::Result<()> {
    for n in 0..count {
        let leaf = leaf(n);
        let path = root.join(&leaf.path);
        if n % PER_FOLDER == 0 {
            fs::create_dir_all(path.parent().unwrap_or(root))?;
        }
        fs::write(&path, &leaf.content)?;
        chown(&path, Some(leaf.uid), Some(leaf.gid))?;
        fs::set_permissions(&path, Permissions::from_mode(leaf.mode))?; // after chown, which clears special bits
    }
    Ok(())
}

/// How the tree on disk differs from what `write` makes, at most the first ten.
#[must_use]
pub fn differences(root: &Path, count: u32) -> Vec<String> {
    let difference = |n: u32| {
        let expected = leaf(n);
        let path = root.join(&expected.path);
        let found = fs::metadata(&path).and_then(|meta| {
            Ok(Leaf {
                path: expected.path.clone(),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                content: fs::read_to_string(&path)?,
            })
        });
        match found {
            Ok(found) if found == expected => None,
            Ok(found) => Some(format!("{found:?} instead of {expected:?}")),
            Err(e) => Some(format!("{}: {e}", path.display())),
        }
    };
    let mut all: Vec<String> = (0..count).filter_map(difference).take(10).collect();
    let folders = fs::read_dir(root).map_or(0, Iterator::count);
    let expected = usize::try_from(count.div_ceil(PER_FOLDER)).expect("a small number");
    if folders != expected {
        all.push(format!("{folders} folders instead of {expected}"));
    }
    all
}
