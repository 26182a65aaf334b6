//! One run of one scenario: bundles, the runtime's verbs, and the clean-up that is itself a check.

use std::cell::{Cell, RefCell};
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::container::Container;
use crate::outcome::{self, Input, Outcome};
use crate::{leaks, rootfs};

/// How a container is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces of the host's kernel.
    Process,
    /// A microVM.
    Vm,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Vm => "vm",
        })
    }
}

/// The runtime under test.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Its program.
    pub program: PathBuf,
}

impl Runtime {
    /// What `RUNTIME` names, else the moat that this workspace built.
    #[must_use]
    pub fn chosen() -> Self {
        Self {
            program: env::var_os("RUNTIME").map_or_else(|| rootfs::built("MOAT", "moat"), PathBuf::from),
        }
    }

    /// Whether it is moat, under any of its names.
    #[must_use]
    pub fn is_moat(&self) -> bool {
        self.program
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("moat"))
    }
}

/// What a scenario works with.
pub struct Trial {
    runtime: Runtime,
    isolation: Isolation,
    home: TempDir,
    serial: Cell<u32>,
    ids: RefCell<Vec<String>>,
    environment: RefCell<Vec<(String, String)>>,
}

impl Trial {
    /// Prepares a trial in a folder of its own.
    ///
    /// # Panics
    /// When the file system refuses, or a program that bundles need is missing.
    #[must_use]
    pub fn new(runtime: &Runtime, isolation: Isolation) -> Self {
        let home = tempfile::Builder::new()
            .prefix("moat-test-")
            .tempdir()
            .expect("a temporary folder");
        std::fs::create_dir(home.path().join("programs")).expect("a folder for programs");
        rootfs::copy_programs(&home.path().join("programs")).unwrap_or_else(|e| panic!("{e}"));
        Self {
            runtime: runtime.clone(),
            isolation,
            home,
            serial: Cell::new(0),
            ids: RefCell::default(),
            environment: RefCell::default(),
        }
    }

    /// The isolation of this run.
    #[must_use]
    pub const fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Whether the runtime under test is moat.
    #[must_use]
    pub fn is_moat(&self) -> bool {
        self.runtime.is_moat()
    }

    /// The time within which every verb has to end.
    #[must_use]
    pub fn limit() -> Duration {
        // A container starts in well under a second, in an emulated machine in a few: a minute means a hang.
        const DEFAULT: Duration = Duration::from_secs(60);
        env::var("MOAT_TEST_TIMEOUT")
            .ok()
            .and_then(|s| s.parse().ok())
            .map_or(DEFAULT, Duration::from_secs)
    }

    /// The folder of this trial, which goes when it ends.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The runtime's state folder, of this trial alone.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// A new bundle.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let path = self.home.path().join(format!("bundle{}", self.next()));
        Bundle::make(&path, &self.home.path().join("programs"))
    }

    /// A container id that no other trial uses.
    #[must_use]
    pub fn id(&self) -> String {
        let home = self
            .home
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let id = format!("{}-{}", home.replace('.', "_"), self.next());
        self.ids.borrow_mut().push(id.clone());
        id
    }

    /// Sets a variable for every later call of the runtime.
    pub fn env(&self, name: &str, value: impl Into<String>) {
        self.environment
            .borrow_mut()
            .push((name.to_owned(), value.into()));
    }

    /// The runtime with `--root` and these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command
            .arg("--root")
            .arg(self.root())
            .args(args)
            .envs(self.environment.borrow().iter().cloned());
        command
    }

    /// `run` or `create` of a bundle, its configuration written.
    #[must_use]
    pub fn launch(&self, verb: &str, bundle: &Bundle, id: &str) -> Command {
        bundle.write();
        let mut command = self.command(&[verb, "--bundle"]);
        command.arg(bundle.path());
        if self.runtime.is_moat() {
            command.arg("--isolation").arg(self.isolation.to_string());
        }
        command
            .arg("--pid-file")
            .arg(self.home.path().join(format!("{id}.pid")))
            .arg(id);
        command
    }

    /// Runs a verb to its end.
    #[must_use]
    pub fn verb(&self, args: &[&str]) -> Outcome {
        outcome::run(&mut self.command(args), Input::Null, Self::limit())
    }

    /// Runs a bundle to its end, with nothing on standard input.
    #[must_use]
    pub fn run(&self, bundle: &Bundle) -> Outcome {
        self.run_with(bundle, Input::Null)
    }

    /// Runs a bundle to its end.
    #[must_use]
    pub fn run_with(&self, bundle: &Bundle, input: Input) -> Outcome {
        outcome::run(&mut self.launch("run", bundle, &self.id()), input, Self::limit())
    }

    /// Runs a bundle that moves so much that an emulated machine takes minutes for it.
    #[must_use]
    pub fn run_slowly(&self, bundle: &Bundle, input: Input) -> Outcome {
        outcome::run(
            &mut self.launch("run", bundle, &self.id()),
            input,
            Self::limit() * 6,
        )
    }

    /// Starts `run` and leaves it running.
    #[must_use]
    pub fn spawn(&self, bundle: &Bundle) -> Container<'_> {
        Container::run(self, bundle)
    }

    /// `create`, as an engine does it.
    #[must_use]
    pub fn create(&self, bundle: &Bundle) -> Container<'_> {
        Container::create(self, bundle)
    }

    /// What this trial has left behind, after a moment for what ends by itself.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        leaks::after_a_moment(|| leaks::of(&self.ids.borrow(), self.home.path(), &self.root()))
    }

    /// Removes containers that a failed scenario left.
    pub fn force_delete(&self) {
        for id in self.ids.borrow().iter() {
            let _ = self.verb(&["delete", "--force", id]);
        }
    }

    fn next(&self) -> u32 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }
}
