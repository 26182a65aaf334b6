//! The command line: runc's verbs and options, with those of crun that test suites of the field mix in.
//! Options stand before or after the id, as both take them.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::isolation::Wish;
use crate::report::log::Format;

/// What follows the program's name in `--version`: engines read the first line.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// An OCI runtime: each container as a namespaced process, or inside a microVM.
#[derive(Debug, Parser)]
#[command(name = "moat", version = VERSION, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of the containers' state [default: /run/moat, or $XDG_RUNTIME_DIR/moat].
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// File for errors and warnings.
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of that file.
    #[arg(long, global = true, value_name = "FORM", default_value = "text")]
    pub log_format: LogFormat,
    /// Use the systemd cgroup driver.
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// As --systemd-cgroup, in crun's words.
    #[arg(long, global = true, value_name = "DRIVER", default_value = "cgroupfs")]
    pub cgroup_manager: CgroupManager,
    /// Accepted for engines; moat logs what matters.
    #[arg(long, global = true)]
    pub debug: bool,
    /// Accepted for engines; moat finds it out.
    #[arg(long, value_name = "BOOL")]
    pub rootless: Option<String>,
}

/// Form of the log file.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// JSON, a line each.
    Json,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Format {
        match format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupManager {
    /// moat.
    Cgroupfs,
    /// systemd.
    Systemd,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a container whose process waits for `start`.
    Create(Create),
    /// Create and start a container, wait for its end and delete it.
    Run {
        /// As for create.
        #[command(flatten)]
        create: Create,
        /// Leave the container running and return.
        #[arg(short, long)]
        detach: bool,
        /// Do not delete the container when it has ended.
        #[arg(long)]
        keep: bool,
        /// Accepted for engines; moat is never a subreaper.
        #[arg(long)]
        no_subreaper: bool,
    },
    /// Start a created container.
    Start {
        /// The container.
        id: String,
    },
    /// Print the state of a container as JSON.
    State {
        /// The container.
        id: String,
    },
    /// Send a signal to a container.
    Kill {
        /// The container.
        id: String,
        /// Name or number.
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// To all of its processes.
        #[arg(short, long)]
        all: bool,
    },
    /// Delete a container.
    Delete {
        /// The container.
        id: String,
        /// Kill it first; an unknown id is no error.
        #[arg(short, long)]
        force: bool,
    },
    /// List the containers.
    List {
        /// Form of the list.
        #[arg(short, long, default_value = "table")]
        format: ListFormat,
        /// Ids only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Write a config.json to start from.
    Spec {
        /// Where to write it.
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        /// For a user without privileges.
        #[arg(id = "unprivileged", long = "rootless")]
        unprivileged: bool,
    },
    /// Print what this runtime can do.
    Features,
    /// Tell what this host can do for each isolation.
    Doctor,
}

/// Form of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people.
    Table,
    /// For engines.
    Json,
}

/// Options of `create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the new container.
    pub id: String,
    /// Directory with config.json.
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Another configuration than the bundle's.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File for the pid of the container's init.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that is given the terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Move the root instead of pivot_root (for a root on a ramfs).
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Descriptors after the standard ones that the process keeps.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// process, vm or auto.
    #[arg(long, default_value = "auto", value_parser = parse_wish, value_name = "WALL")]
    pub isolation: Wish,
}

fn parse_wish(word: &str) -> Result<Wish, crate::isolation::UnknownIsolation> {
    word.parse()
}

impl Create {
    /// Whether an option names an inherited descriptor as a path.
    pub fn names_descriptor(&self) -> bool {
        let paths = [
            Some(&self.bundle),
            self.config.as_ref(),
            self.pid_file.as_ref(),
            self.console_socket.as_ref(),
        ];
        paths.into_iter().flatten().any(|path| is_descriptor(path))
    }
}

/// Whether a path leads to a descriptor of the process that opens it.
pub fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_calls_of_engines_are_understood() {
        for line in [
            "moat --root /r --log /l --log-format json create --bundle /b --pid-file /b/init.pid id",
            "moat --log-format=json --log /l create --bundle /b --pid-file /p --console-socket /s id",
            "moat create id --bundle /b",
            "moat --root /r --log /l --log-format json start id",
            "moat kill id 15",
            "moat kill --all id 9",
            "moat kill id KILL --all",
            "moat delete id --force",
            "moat delete --force id",
            "moat state id --root /r",
            "moat list -q -f json",
            "moat --cgroup-manager cgroupfs run --config /c --bundle /b id",
            "moat --systemd-cgroup --debug --rootless true run -d --keep -b /b id",
            "moat spec --rootless",
        ] {
            parse(line);
        }
    }

    #[test]
    fn isolation_is_one_of_three_words() {
        assert!(Cli::try_parse_from(["moat", "run", "--isolation", "vmm", "id"]).is_err());
        let Verb::Create(create) = parse("moat create id").verb else {
            panic!()
        };
        assert_eq!(create.isolation, Wish::Auto);
    }

    #[test]
    fn descriptors_named_as_paths_are_seen() {
        let Verb::Create(create) = parse("moat create --pid-file /proc/self/fd/5 id").verb else {
            panic!()
        };
        assert!(create.names_descriptor());
        let Verb::Create(create) = parse("moat create --pid-file /run/pid id").verb else {
            panic!()
        };
        assert!(!create.names_descriptor());
    }
}
