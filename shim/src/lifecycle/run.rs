//! `run`: create, start, and unless detached wait for the end, forward signals and the terminal, delete,
//! and end with the workload's status.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use super::Error;
use super::create::{self, CreateOptions, Created, Terminal};
use super::store::{Locked, Store};
use super::{delete, start};
use crate::cell::sync;
use crate::payload::relay::Relay;
use crate::report::log;
use crate::signal;

/// What `run` is given beside what `create` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// Do not wait.
    pub detach: bool,
    /// Leave the container there when it has ended.
    pub keep: bool,
}

/// Runs a container. Gives back the status that the command line is to end with.
///
/// # Errors
/// When it can't be created or started; nothing of it is left then.
pub fn run(store: &Store, options: &CreateOptions, run: RunOptions) -> Result<u8, Error> {
    let plan = create::load_plan(options)?;
    let relayed = plan.workload.process.terminal.is_some() && options.console_socket.is_none();
    let (terminal, master) = match (relayed, run.detach) {
        (true, false) => {
            let (ours, inits) = terminal_pair()?;
            (Terminal::Relay(inits), Some(ours))
        }
        (true, true) | (false, _) => (Terminal::Hand, None),
    };
    // From here on they wait, so that none is lost before there is somebody to forward it to.
    let signals = if run.detach { None } else { Some(block_signals()?) };
    let created = create::create(store, options, plan, terminal)?;
    let ended = start_and_wait(&created, master, signals);
    match (&ended, run) {
        (Ok(_), RunOptions { detach: true, .. } | RunOptions { keep: true, .. }) => {}
        (
            Ok(_),
            RunOptions {
                detach: false,
                keep: false,
            },
        )
        | (Err(_), _) => clean_up(created.container),
    }
    ended
}

fn start_and_wait(
    created: &Created,
    master: Option<OwnedFd>,
    signals: Option<SignalFd>,
) -> Result<u8, Error> {
    let relay = master.map(|socket| receive_terminal(&socket)).transpose()?;
    start::start_locked(&created.container)?;
    match signals {
        None => Ok(0),
        Some(signals) => wait(&created.init, &signals, relay),
    }
}

fn clean_up(container: Locked) {
    let deleted = container
        .read()
        .map_err(Error::from)
        .and_then(|memory| delete::tear_down(container, memory));
    if let Err(error) = deleted {
        log::warn(&format!("cleaning up: {}", crate::report::error::chain(&error)));
    }
}

fn terminal_pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    pair.map_err(|error| Error::Terminal {
        action: "make a socket pair for the terminal",
        source: error.into(),
    })
}

/// init has sent it before it was prepared, so it is there.
fn receive_terminal(socket: &OwnedFd) -> Result<Relay, Error> {
    let failed = |action| move |source| Error::Terminal { action, source };
    let master =
        sync::receive_descriptor(socket.as_fd()).map_err(failed("receive the container's terminal"))?;
    Relay::new(master).map_err(failed("put this terminal into raw mode"))
}

/// Signals that are not the container's: of this process itself, or impossible to hold back.
const OWN: [Signal; 7] = [
    Signal::SIGCHLD,
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGURG,
];

fn block_signals() -> Result<SignalFd, Error> {
    let mut set = SigSet::all();
    for signal in OWN {
        set.remove(signal);
    }
    // A fault of our own must not wait.
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
    ] {
        set.remove(fault);
    }
    let failed = |error: nix::Error| Error::Wait(error.into());
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Waits for init's end. Bytes that the terminal still holds are passed on before.
fn wait(init: &OwnedFd, signals: &SignalFd, mut relay: Option<Relay>) -> Result<u8, Error> {
    loop {
        let mut polled = vec![
            PollFd::from_borrowed_fd(init.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if let Some(relay) = &relay {
            polled.extend(relay.polled());
        }
        match rustix::event::poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            result => result.map_err(|error| Error::Wait(error.into()))?,
        };
        let ready: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        drop(polled);
        if !ready[1].is_empty() {
            forward(init, signals, relay.as_ref());
        }
        if let Some(relay) = &mut relay {
            relay.pump(&ready[2..]);
        }
        if !ready[0].is_empty() {
            if let Some(relay) = relay {
                relay.finish();
            }
            return reap(init);
        }
    }
}

fn forward(init: &OwnedFd, signals: &SignalFd, relay: Option<&Relay>) {
    while let Ok(Some(info)) = signals.read_signal() {
        let Ok(number) = u8::try_from(info.ssi_signo) else {
            continue;
        };
        match relay {
            Some(relay) if i32::from(number) == nix::libc::SIGWINCH => relay.resize(),
            Some(_) | None => {
                // It may have ended meanwhile.
                let _sent = signal::send(init, number);
            }
        }
    }
}

/// The status of an ended child as a shell gives it.
fn reap(init: &OwnedFd) -> Result<u8, Error> {
    let status = loop {
        match rustix::process::waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            status => break status.map_err(|error| Error::Wait(error.into()))?,
        }
    };
    let status = status.ok_or(Error::InitDied)?;
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => return Err(Error::InitDied),
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
