//! `/init` of the guest. See the library.

#![forbid(unsafe_code)]

use moat_guest_init::{
    agent::Agent,
    boot, console,
    listener::Listeners,
    machine::{Guest, power_off},
    reaper::Children,
};
use moat_workload::error_chain;

fn main() {
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
    let clock = boot::prepare()?;
    let children = Children::watch()?;
    let listeners = Listeners::vsock()?;
    let mut agent = Agent::new(Guest::new(clock), listeners, children, boot::CGROUPS.into())?;
    // the host may connect from now on; what takes longest is done while it does
    agent.announce();
    agent.set_cell(boot::mount_cell());
    Ok(agent.run()?)
}
