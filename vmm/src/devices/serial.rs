//! COM1, a 16550A without input: what the guest's kernel prints lands in a ring, to be shown when
//! something goes wrong.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the console that are kept. A panic with its trace is some 4 KiB.
const CONSOLE_SIZE: usize = 64 << 10;

/// What a Linux guest says when it panics, first and last. Either will do: another CPU may be printing, and
/// breaks one of them in two.
const PANIC: [&str; 3] = [
    "Kernel panic - not syncing",
    "Kernel Offset: ",
    "---[ end Kernel panic",
];

/// The last 64 KiB of the guest's console.
#[derive(Debug, Default)]
pub struct Console(Mutex<VecDeque<u8>>);

impl Console {
    /// What is there, with characters that are not UTF-8 replaced.
    pub fn text(&self) -> String {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = ring.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    /// The last `count` lines.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }

    /// Whether a kernel says that it has panicked.
    pub fn shows_panic(&self) -> bool {
        let text = self.text();
        PANIC.iter().any(|sign| text.contains(sign))
    }

    fn push(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if ring.len() == CONSOLE_SIZE {
                ring.pop_front();
            }
            ring.push_back(*byte);
        }
    }
}

struct ConsoleWriter(Arc<Console>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The registers of the port: what a clone of the VM needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPortState {
    /// Divisor latch, low and high.
    pub divisor: (u8, u8),
    /// Interrupt enable and interrupt identification.
    pub interrupt: (u8, u8),
    /// Line control and line status.
    pub line: (u8, u8),
    /// Modem control and modem status.
    pub modem: (u8, u8),
    /// Scratch.
    pub scratch: u8,
}

/// The port.
pub struct SerialPort(Serial<Line, NoEvents, ConsoleWriter>);

impl SerialPort {
    /// A port that raises `line` and prints to `console`.
    pub fn new(line: EventFd, console: Arc<Console>) -> SerialPort {
        SerialPort(Serial::new(Line(line), ConsoleWriter(console)))
    }

    /// The guest writes register `offset`, 0 to 7.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Fails when the interrupt's eventfd would overflow, which is a pending interrupt all the same,
        // or when a loopback buffer is full, which drops the byte as a UART does.
        let _ = self.0.write(offset, value);
    }

    /// The guest reads register `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// Its registers.
    pub fn state(&self) -> SerialPortState {
        let state: SerialState = self.0.state();
        SerialPortState {
            divisor: (state.baud_divisor_low, state.baud_divisor_high),
            interrupt: (state.interrupt_enable, state.interrupt_identification),
            line: (state.line_control, state.line_status),
            modem: (state.modem_control, state.modem_status),
            scratch: state.scratch,
        }
    }
}

/// A port with its console and an interrupt that nobody hears.
#[cfg(test)]
pub fn test_serial() -> (SerialPort, Arc<Console>) {
    let console = Arc::new(Console::default());
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    (SerialPort::new(line, Arc::clone(&console)), console)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn console_keeps_the_end() {
        let console = Console::default();
        console.push(&[b'a'; CONSOLE_SIZE]);
        console.push(b"\nlast but one\nlast");
        assert_eq!(console.text().len(), CONSOLE_SIZE);
        assert_eq!(console.last_lines(2), ["last but one", "last"]);
        assert_eq!(console.last_lines(99).len(), 3);
    }

    #[test]
    fn panic_is_seen() {
        let console = Console::default();
        console.push(b"all is well\n");
        assert!(!console.shows_panic());
        console.push(b"[1.0] Kernel panic - not syncing: VFS\n");
        assert!(console.shows_panic());

        // Seen with two vCPUs: init's last line and the kernel's meet.
        let console = Console::default();
        console.push(b"[ 1.7probe: 0 failed\n8] Kernel pa\r\nnic - not syncing: init\n[ 1.8] Kernel Offset: disabled\n");
        assert!(console.shows_panic());
    }

    #[test]
    fn state_follows_the_registers() {
        let (mut port, _) = test_serial();
        port.write(7, 0x5a);
        port.write(1, 0x02);
        assert_eq!((port.state().scratch, port.state().interrupt.0), (0x5a, 0x02));
    }

    proptest! {
        #[test]
        fn any_register_access_is_survived(accesses in proptest::collection::vec((0u8..8, any::<u8>(), any::<bool>()), 0..500)) {
            let (mut port, console) = test_serial();
            for (offset, value, write) in accesses {
                if write { port.write(offset, value) } else { port.read(offset); }
            }
            prop_assert!(console.text().len() <= 4 * CONSOLE_SIZE);
        }
    }
}
