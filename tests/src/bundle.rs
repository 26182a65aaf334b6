//! A bundle on disk: a root filesystem and a `config.json` that the scenario shapes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{rootfs, spec};

/// A bundle folder. `config.json` is written when a verb needs it.
pub struct Bundle {
    path: PathBuf,
    config: Value,
}

impl Bundle {
    /// Makes a bundle at `path`, with the programs in `programs`.
    ///
    /// # Panics
    /// When the file system refuses.
    #[must_use]
    pub fn make(path: &Path, programs: &Path) -> Self {
        rootfs::make(&path.join("rootfs"), programs)
            .unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        Self {
            path: path.to_owned(),
            config: spec::default(),
        }
    }

    /// The bundle's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the root filesystem, as the host sees it.
    #[must_use]
    pub fn rootfs(&self, inside: &str) -> PathBuf {
        self.path.join("rootfs").join(inside.trim_start_matches('/'))
    }

    /// A new folder beside the root filesystem, to be bound into it.
    ///
    /// # Panics
    /// When the file system refuses.
    #[must_use]
    pub fn volume(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        path
    }

    /// The workload is `args`.
    #[must_use]
    pub fn args(self, args: &[&str]) -> Self {
        self.edit(|c| c["process"]["args"] = json!(args))
    }

    /// The workload is a script of busybox's shell.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// The workload is the probe.
    #[must_use]
    pub fn probe(self, args: &[&str]) -> Self {
        self.args(&[&[rootfs::PROBE], args].concat())
    }

    /// The workload has these capabilities in every set.
    #[must_use]
    pub fn capabilities(self, names: &[&str]) -> Self {
        self.edit(|c| {
            for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
                c["process"]["capabilities"][set] = json!(names);
            }
        })
    }

    /// The workload has the capabilities that engines give by default.
    #[must_use]
    pub fn engine_capabilities(self) -> Self {
        self.capabilities(spec::ENGINE_CAPABILITIES)
    }

    /// Binds `source` of the host at `destination`, with these options beside `bind`.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let mut all = options.to_vec();
        if !all.contains(&"rbind") {
            all.push("bind");
        }
        self.mount(json!({"destination": destination, "type": "bind", "source": source, "options": all}))
    }

    /// Adds an entry to the list of mounts.
    ///
    /// # Panics
    /// When the scenario has replaced the list by something else.
    #[must_use]
    pub fn mount(self, entry: Value) -> Self {
        self.edit(|c| c["mounts"].as_array_mut().expect("mounts is a list").push(entry))
    }

    /// Changes the configuration.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// The configuration as it is.
    #[must_use]
    pub const fn config(&self) -> &Value {
        &self.config
    }

    /// Writes `config.json`.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn write(&self) {
        let file = self.path.join("config.json");
        fs::write(&file, self.config.to_string())
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
    }
}
