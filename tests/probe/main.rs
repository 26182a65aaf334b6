//! The workload for what busybox cannot check. Prints `key=value` lines; ends with 1 on an unknown command.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is what it is for"
)]

mod posix;
mod posix_files;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, thread};

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["identity"] => identity(),
        ["tree", folder, count] => return tree(folder, count),
        ["posix", folder] => return posix::check(Path::new(folder)),
        ["hold-lock", file] => return posix_files::hold_lock(Path::new(file)),
        ["signals"] => signals(),
        ["allocate", mib] => allocate(mib),
        ["fault"] => fault(),
        _ => {
            eprintln!("unknown command: {words:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Who this process is, as the kernel sees it.
fn identity() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    const WANTED: &[&str] = &[
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ];
    for (key, value) in status.lines().filter_map(|line| line.split_once(':')) {
        if WANTED.contains(&key) {
            println!("{key}={}", value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    println!("pid={}", std::process::id());
    println!("cwd={}", env::current_dir().unwrap_or_default().display());
    let mut descriptors: Vec<String> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !fs::read_link(entry.path()).is_ok_and(|target| target.ends_with("fd")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    descriptors.sort();
    println!("descriptors={}", descriptors.join(" "));
}

fn tree(folder: &str, count: &str) -> ExitCode {
    let written = count
        .parse()
        .map_err(io::Error::other)
        .and_then(|n| moat_tests::tree::write(Path::new(folder), n));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Says `ready`, then the name of each signal that arrives, for ever.
fn signals() {
    let all = SigSet::all();
    all.thread_block().expect("signals can be blocked");
    println!("ready");
    while let Ok(signal) = all.wait() {
        // Runtimes in Go pass on the SIGURG by which their own threads wake each other.
        if signal != Signal::SIGURG {
            println!("{signal}");
        }
    }
}

/// Touches every page of so many MiB, then says so and waits for the end of standard input.
fn allocate(mib: &str) {
    const MIB: usize = 1 << 20;
    const PAGE: usize = 4096;
    let size = mib.parse::<usize>().expect("a number of MiB") * MIB;
    let mut memory = vec![0_u8; size];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    println!("touched={}", std::hint::black_box(&memory).len() / MIB);
    let _ = io::stdout().flush();
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

/// Dies of a SIGSEGV that the kernel raises: one that is sent does not reach the first process of a namespace.
#[expect(unsafe_code, reason = "no safe code faults")]
fn fault() {
    // SAFETY: a privileged instruction in user mode raises a general protection fault before it does anything.
    unsafe { std::arch::asm!("hlt") };
    thread::sleep(Duration::from_secs(1));
}
