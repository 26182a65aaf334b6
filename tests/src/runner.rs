//! Runs scenarios once per isolation, counts, and prints why something was skipped.
//!
//! Arguments: words that a scenario's name must contain one of; `--isolation process|vm`; `--jobs N`; `--list`.
#![expect(
    clippy::print_stdout,
    reason = "this is where the result of the tests is printed"
)]

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::requirement::Requirement;
use crate::trial::{Isolation, Runtime, Trial};

/// A claim and the code that checks it.
pub struct Scenario {
    /// The claim, in words joined by underscores.
    pub name: &'static str,
    /// What it needs, beside what its isolation needs.
    pub needs: &'static [Requirement],
    /// Panics when the claim does not hold.
    pub check: fn(&Trial),
}

/// Names a scenario by its function: `scenario!(function)` or `scenario!(function, needs: Moat, Vm)`.
#[macro_export]
macro_rules! scenario {
    ($check:ident $(, needs: $($need:ident),+)?) => {
        $crate::runner::Scenario {
            name: stringify!($check),
            needs: &[$($($crate::requirement::Requirement::$need),+)?],
            check: $check,
        }
    };
}

struct Options {
    words: Vec<String>,
    isolations: Vec<Isolation>,
    jobs: usize,
    list: bool,
}

enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs all scenarios that the arguments choose and prints a line for each.
#[must_use]
pub fn main(scenarios: &[&[Scenario]]) -> ExitCode {
    run(scenarios, &options())
}

/// The same for scenarios that count what is on the machine: one at a time.
#[must_use]
pub fn main_one_by_one(scenarios: &[&[Scenario]]) -> ExitCode {
    run(scenarios, &Options { jobs: 1, ..options() })
}

fn run(scenarios: &[&[Scenario]], options: &Options) -> ExitCode {
    let runtime = Runtime::chosen();
    let all = || scenarios.iter().copied().flatten();
    let chosen = |scenario: &&Scenario| {
        options.words.is_empty() || options.words.iter().any(|w| scenario.name.contains(w))
    };
    // A claim about guests is none about processes, and other runtimes have no guests: not counted as skipped.
    let speaks_of = |s: &Scenario, i: Isolation| match i {
        Isolation::Process => !s.needs.contains(&Requirement::Vm),
        Isolation::Vm => runtime.is_moat(),
    };
    let work: Vec<(&Scenario, Isolation)> = all()
        .filter(chosen)
        .flat_map(|s| options.isolations.iter().map(move |i| (s, *i)))
        .filter(|(s, i)| speaks_of(s, *i))
        .collect();
    if options.list {
        work.iter()
            .for_each(|(scenario, isolation)| println!("{isolation}::{}", scenario.name));
        return ExitCode::SUCCESS;
    }
    println!("runtime {}, {} scenarios", runtime.program.display(), work.len());
    silence_panics();

    let next = AtomicUsize::new(0);
    let tally = Mutex::new((0_u32, Vec::new(), 0_u32));
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                while let Some((scenario, isolation)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = Instant::now();
                    let verdict = judge(scenario, &runtime, *isolation);
                    let name = format!("{isolation}::{}", scenario.name);
                    let took = begin.elapsed().as_secs_f32();
                    let mut tally = tally.lock().expect("no thread panics while it counts");
                    match verdict {
                        Verdict::Passed => {
                            println!("ok      {name} ({took:.1} s)");
                            tally.0 += 1;
                        }
                        Verdict::Skipped(why) => {
                            println!("skipped {name}: {why}");
                            tally.2 += 1;
                        }
                        Verdict::Failed(why) => {
                            println!(
                                "FAILED  {name} ({took:.1} s)\n        {}",
                                why.replace('\n', "\n        ")
                            );
                            tally.1.push(name);
                        }
                    }
                }
            });
        }
    });
    let (passed, failed, skipped) = tally.into_inner().expect("no thread panics while it counts");
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn judge(scenario: &Scenario, runtime: &Runtime, isolation: Isolation) -> Verdict {
    if !runtime.is_moat() && scenario.needs.contains(&Requirement::Moat) {
        return Verdict::Skipped(format!("says nothing about {}", runtime.program.display()));
    }
    let for_vm: &[Requirement] = if isolation == Isolation::Vm {
        &[Requirement::Kvm]
    } else {
        &[]
    };
    for need in [&[Requirement::Root], for_vm, scenario.needs].concat() {
        match need.missing() {
            Some(why) if need.demanded() => {
                return Verdict::Failed(format!("REQUIRE names {}: {why}", need.name()));
            }
            Some(why) => return Verdict::Skipped(why),
            None => {}
        }
    }
    match panic::catch_unwind(AssertUnwindSafe(|| attempt(scenario, runtime, isolation))) {
        Ok(()) => Verdict::Passed,
        Err(cause) => Verdict::Failed(text_of(cause.as_ref())),
    }
}

/// The scenario, then the search for what it left behind.
fn attempt(scenario: &Scenario, runtime: &Runtime, isolation: Isolation) {
    let trial = Trial::new(runtime, isolation);
    let result = panic::catch_unwind(AssertUnwindSafe(|| (scenario.check)(&trial)));
    let left = if result.is_ok() {
        trial.left_behind()
    } else {
        Vec::new()
    };
    if result.is_err() || !left.is_empty() {
        trial.force_delete();
    }
    if let Err(cause) = result {
        panic::resume_unwind(cause);
    }
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// Panics are reported by the line of their scenario, with the place in front.
fn silence_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        LAST_PLACE.with(|last| last.replace(place));
    }));
}

thread_local! {
    static LAST_PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

fn text_of(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().cloned();
    let text = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let place = LAST_PLACE.with(|last| last.borrow().clone());
    format!("{place}: {}", text.unwrap_or_else(|| "panicked".to_owned()))
}

fn options() -> Options {
    let both = || vec![Isolation::Process, Isolation::Vm];
    let isolations = |name: &str| match name {
        "process" => vec![Isolation::Process],
        "vm" => vec![Isolation::Vm],
        _ => both(),
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options {
        words: Vec::new(),
        isolations: env::var("ISOLATION").map_or_else(|_| both(), |name| isolations(&name)),
        jobs: cpus.min(4), // a VM each: more would only make the slowest slower
        list: false,
    };
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--isolation" => options.isolations = isolations(&args.next().unwrap_or_default()),
            "--jobs" => options.jobs = args.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            "--list" => options.list = true,
            word if word.starts_with("--") => {} // what `cargo test` passes to every harness
            word => options.words.push(word.to_owned()),
        }
    }
    options
}
