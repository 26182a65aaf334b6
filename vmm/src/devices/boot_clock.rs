//! Phase marks: the guest writes a byte to a port, the host notes when. What a byte stands for is
//! between the guest and whoever runs it.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::event::Event;

/// The mark that the machine itself sets: the first instruction of the kernel is about to run. Guests
/// cannot write it.
pub const MARK_KERNEL_ENTRY: u8 = 0;

/// Marks kept. Phases are a handful; a guest that writes more is told nothing.
const MAX_MARKS: usize = 64;

/// One mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What the guest wrote.
    pub number: u8,
    /// When, since the VM's start.
    pub at: Duration,
}

/// The clock and its marks.
#[derive(Debug)]
pub struct BootClock {
    state: Mutex<(Instant, Vec<Mark>)>,
    event: Event,
}

impl BootClock {
    /// A clock that starts now.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new() -> io::Result<BootClock> {
        let event = Event::new()?;
        Ok(BootClock {
            state: Mutex::new((Instant::now(), Vec::new())),
            event,
        })
    }

    /// Counts from now on, and sets [`MARK_KERNEL_ENTRY`].
    pub fn start(&self) {
        let entry = Mark {
            number: MARK_KERNEL_ENTRY,
            at: Duration::ZERO,
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), vec![entry]);
    }

    /// The guest writes `number`.
    pub fn mark(&self, number: u8) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if number == MARK_KERNEL_ENTRY || state.1.len() >= MAX_MARKS {
            return;
        }
        let at = state.0.elapsed();
        state.1.push(Mark { number, at });
        drop(state);
        self.event.signal();
    }

    /// All marks so far; the event is quiet again until the next one.
    pub fn marks(&self) -> Vec<Mark> {
        self.event.take();
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .clone()
    }

    /// Readable when a mark has come since [`BootClock::marks`] was last called.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_in_order_bounded_and_announced() {
        let clock = BootClock::new().unwrap();
        clock.start();
        assert!(!clock.event().take());
        for i in 0..1000u32 {
            clock.mark(u8::try_from(i % 200).unwrap());
        }
        assert!(clock.event().take());
        let marks = clock.marks();
        assert_eq!(marks.len(), MAX_MARKS);
        assert_eq!(
            (marks[0].number, marks[1].number, marks[2].number),
            (MARK_KERNEL_ENTRY, 1, 2)
        );
        assert!(marks.is_sorted_by_key(|mark| mark.at));
        assert!(!clock.event().take());
    }
}
