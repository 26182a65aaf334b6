//! `/init` of the guest. See the library.
//!
//! It has no `main` of Rust's: the start-up code of the standard library would abort, and with it the
//! kernel, where descriptors 0 to 2 are closed and there is no `/dev/null` yet to put there (a guest
//! without console), and its look at the stack's bounds pulls 70 KiB of C library into a static program
//! (`pthread_getattr_np` reads `/proc/self/maps` by `sscanf`).

#![no_main]

use moat_guest_init::{
    agent::Agent,
    boot, console,
    listener::Listeners,
    machine::{Guest, power_off},
    reaper::Children,
};
use moat_workload::{error_chain, sys};

/// Where the C library begins.
#[expect(
    unsafe_code,
    reason = "`main` must have this name; the library forbids all unsafe code"
)]
// SAFETY: the one symbol `main` of the program, with a signature that C's may have.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    if std::process::id() != 1 {
        console::refuse();
        return 1;
    }
    // a panic of PID 1 would be a panic of the kernel, which hides what it was about
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("fatal: {panic}"));
        power_off();
    }));
    if let Err(error) = run() {
        console::say(&format!("fatal: {}", error_chain(&*error)));
    }
    power_off();
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    boot::reserve_standard_descriptors()?;
    sys::ignore_sigpipe()?;
    let clock = boot::prepare()?;
    let children = Children::watch()?;
    let listeners = Listeners::vsock()?;
    let mut agent = Agent::new(Guest::new(clock), listeners, children, boot::CGROUPS.into())?;
    // the host may connect from now on; what takes longest is done while it does
    agent.announce();
    agent.set_cell(boot::mount_cell());
    Ok(agent.run()?)
}
