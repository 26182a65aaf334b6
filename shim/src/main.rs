//! moat: an OCI runtime that runs each container as a namespaced process, or inside a microVM.
//!
//! `main` reads the command line ([`cli`]), carries out the verb ([`lifecycle`]) and reports
//! ([`report`]). The program has one thread; see `docs/` for how the parts fit.

mod bundle;
mod cell;
mod cli;
mod control;
mod descriptors;
mod isolation;
mod lifecycle;
mod payload;
mod report;
mod signal;

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use bundle::plan::PlanOptions;
use bundle::{example, names};
use cli::{CgroupManager, Cli, Create, Global, ListFormat, Verb};
use descriptors::Inherited;
use lifecycle::create::{CreateOptions, Terminal};
use lifecycle::run::RunOptions;
use lifecycle::store::Store;
use report::error::FAILURE;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { FAILURE } else { 0 };
            let _closed = error.print();
            return ExitCode::from(code);
        }
    };
    let program = arguments.first().map(PathBuf::from).unwrap_or_default();
    match run(cli, &program) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report::error::report(&*error);
            ExitCode::from(FAILURE)
        }
    }
}

/// What the command line asks for and can't be.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error("{text:?} is no signal")]
    Signal { text: String },
    #[error("cannot find the bundle {}", path.display())]
    Bundle {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn run(cli: Cli, program: &Path) -> Result<u8, Box<dyn StdError>> {
    let Cli { global, verb } = cli;
    if let Verb::Create(create) | Verb::Run { create, .. } = &verb {
        close_inherited(create, &global)?;
    }
    report::log::open(global.log.as_deref(), global.log_format.into())?;
    let store = Store::new(global.root.clone().unwrap_or_else(default_root));
    match verb {
        Verb::Create(create) => {
            let options = create_options(create, &global, program)?;
            let plan = lifecycle::create::load_plan(&options)?;
            lifecycle::create::create(&store, &options, plan, Terminal::Hand)?;
        }
        Verb::Run {
            create,
            detach,
            keep,
            no_subreaper: _,
        } => {
            let options = create_options(create, &global, program)?;
            return Ok(lifecycle::run::run(
                &store,
                &options,
                RunOptions { detach, keep },
            )?);
        }
        Verb::Start { id } => lifecycle::start::start(&store, &id)?,
        Verb::State { id } => report::json(&lifecycle::state::state(&store, &id)?),
        Verb::Kill { id, signal, all } => {
            let number = names::signal(&signal).ok_or(UsageError::Signal { text: signal })?;
            lifecycle::kill::kill(&store, &id, number, all)?;
        }
        Verb::Delete { id, force } => lifecycle::delete::delete(&store, &id, force)?,
        Verb::List { format, quiet } => list(&store, format, quiet)?,
        Verb::Spec { bundle, unprivileged } => {
            let own = || {
                (
                    rustix::process::geteuid().as_raw(),
                    rustix::process::getegid().as_raw(),
                )
            };
            example::write(&bundle, unprivileged.then(own))?;
        }
        Verb::Features => report::json(&report::features::features()),
        Verb::Doctor => report::text(&isolation::doctor::diagnose().to_string()),
    }
    Ok(0)
}

fn list(store: &Store, format: ListFormat, quiet: bool) -> Result<(), lifecycle::Error> {
    let states = lifecycle::list::list(store)?;
    match (quiet, format) {
        (true, _) => {
            for state in states {
                report::text(&state.id);
            }
        }
        (false, ListFormat::Table) => report::text(&report::table::containers(&states)),
        (false, ListFormat::Json) => report::json_line(&states),
    }
    Ok(())
}

/// The state lives where nothing outlives a restart of the machine.
fn default_root() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    runtime.map_or_else(
        || PathBuf::from("/run/moat"),
        |runtime| PathBuf::from(runtime).join("moat"),
    )
}

/// Descriptors to keep: those asked for, and those of socket activation.
fn preserved(create: &Create) -> u32 {
    create
        .preserve_fds
        .saturating_add(activation_sockets().unwrap_or(0))
}

/// sd_listen_fds(3).
fn activation_sockets() -> Option<u32> {
    std::env::var("LISTEN_FDS").ok()?.parse().ok()
}

fn close_inherited(create: &Create, global: &Global) -> std::io::Result<()> {
    let named = create.names_descriptor()
        || [&global.root, &global.log]
            .into_iter()
            .flatten()
            .any(|path| cli::is_descriptor(path));
    let how = if named {
        Inherited::CloseOnExec
    } else {
        Inherited::Close
    };
    descriptors::close_inherited(preserved(create).saturating_add(3), how)
}

fn create_options(create: Create, global: &Global, program: &Path) -> Result<CreateOptions, UsageError> {
    let preserve_fds = preserved(&create);
    let bundle = std::path::absolute(&create.bundle).map_err(|source| UsageError::Bundle {
        path: create.bundle.clone(),
        source,
    })?;
    Ok(CreateOptions {
        id: create.id,
        bundle: without_dots(&bundle),
        config: create.config,
        pid_file: create.pid_file,
        console_socket: create.console_socket,
        isolation: create.isolation,
        program_name: program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        plan: PlanOptions {
            no_pivot: create.no_pivot,
            no_new_keyring: create.no_new_keyring,
            activation_sockets: activation_sockets(),
        },
        preserve_fds,
        systemd_cgroup: global.systemd_cgroup || global.cgroup_manager == CgroupManager::Systemd,
    })
}

/// `std::path::absolute` keeps `..`, since links may stand before it; without one, only `.` and doubled
/// slashes are taken out, which it has done. A path with `..` is resolved by the kernel.
fn without_dots(path: &Path) -> PathBuf {
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    match climbs.then(|| path.canonicalize()) {
        Some(Ok(resolved)) => resolved,
        Some(Err(_)) | None => path.to_owned(),
    }
}
