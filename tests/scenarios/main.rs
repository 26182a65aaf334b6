//! What a container does, claimed once and checked in each isolation.

use std::process::ExitCode;

mod cli;
mod confinement;
mod files;
mod guests;
mod lifecycle;
mod mounts;
mod outcome;
mod refusals;
mod resources;
mod streams;
mod workload;

fn main() -> ExitCode {
    moat_tests::runner::main(&[
        outcome::SCENARIOS,
        streams::SCENARIOS,
        workload::SCENARIOS,
        confinement::SCENARIOS,
        files::SCENARIOS,
        mounts::SCENARIOS,
        resources::SCENARIOS,
        lifecycle::SCENARIOS,
        refusals::SCENARIOS,
        guests::SCENARIOS,
        cli::SCENARIOS,
    ])
}
