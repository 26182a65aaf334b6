//! The one state that all vCPUs of a VM follow, and how the VM ended.
//!
//! ```text
//!   Running ⇄ Paused
//!       └────────┴──► Stopped      whoever ends the VM first says why
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::event::Event;
use crate::vm::ExitReason;

/// What the vCPUs shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Run the guest.
    Running,
    /// Wait outside the guest.
    Paused,
    /// Leave for good.
    Stopped,
}

/// Shared by the vCPU threads and the VM's owner.
#[derive(Debug)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    ended: Event,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    parked: usize,
    reason: Option<ExitReason>,
}

impl Control {
    /// A VM that runs; `ended` becomes readable when it has ended.
    pub fn new(ended: Event) -> Control {
        let state = State {
            phase: Phase::Running,
            parked: 0,
            reason: None,
        };
        Control {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended,
        }
    }

    /// Blocks a vCPU while the VM is paused; `parking` is called once before that. `false` says that the
    /// VM is over.
    pub fn admit(&self, parking: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Paused {
            parking();
            state.parked += 1;
            self.changed.notify_all();
            while state.phase == Phase::Paused {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.parked -= 1;
        }
        state.phase == Phase::Running
    }

    /// Ends the VM. Only the first reason counts. The other vCPUs go on until they are kicked.
    pub fn end(&self, reason: ExitReason) {
        let mut state = self.lock();
        state.phase = Phase::Stopped;
        state.reason.get_or_insert(reason);
        self.changed.notify_all();
        drop(state);
        self.ended.signal();
    }

    /// Why the VM ended, if it has.
    pub fn reason(&self) -> Option<ExitReason> {
        self.lock().reason.clone()
    }

    /// Readable once the VM has ended.
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Asks for a pause; kick the vCPUs after it. `false` when the VM is over.
    pub fn pause(&self) -> bool {
        self.change(Phase::Paused)
    }

    /// Ends a pause. `false` when the VM is over.
    pub fn resume(&self) -> bool {
        self.change(Phase::Running)
    }

    /// Waits until `count` vCPUs are parked, or the VM is over (`false`).
    pub fn wait_parked(&self, count: usize) -> bool {
        let mut state = self.lock();
        while state.phase == Phase::Paused && state.parked < count {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.phase == Phase::Paused
    }

    fn change(&self, to: Phase) -> bool {
        let mut state = self.lock();
        match state.phase {
            Phase::Stopped => false,
            Phase::Running | Phase::Paused => {
                state.phase = to;
                self.changed.notify_all();
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that a thread of ours panicked; the state itself is always whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn control() -> Arc<Control> {
        Arc::new(Control::new(Event::new().unwrap()))
    }

    #[test]
    fn first_reason_wins_and_the_end_is_readable() {
        let control = control();
        assert!(control.admit(|| ()));
        assert!(!control.ended().take());
        control.end(ExitReason::GuestReset);
        control.end(ExitReason::Stopped);
        assert_eq!(control.reason(), Some(ExitReason::GuestReset));
        assert!(control.ended().take());
        assert!(!control.admit(|| panic!("not paused")));
        assert!(!control.pause());
        assert!(!control.resume());
    }

    #[test]
    fn paused_vcpus_park_and_go_on() {
        let control = control();
        assert!(control.pause());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let control = Arc::clone(&control);
                thread::spawn(move || control.admit(|| ()))
            })
            .collect();
        assert!(control.wait_parked(3));
        assert!(control.resume());
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    }

    #[test]
    fn end_releases_paused_vcpus() {
        let control = control();
        control.pause();
        let vcpu = {
            let control = Arc::clone(&control);
            thread::spawn(move || control.admit(|| ()))
        };
        assert!(control.wait_parked(1));
        control.end(ExitReason::Stopped);
        assert!(!vcpu.join().unwrap());
        assert!(!control.wait_parked(1));
    }
}
