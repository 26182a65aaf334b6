//! Where a vCPU's exits for I/O lead. Ports and addresses are few and fixed, so this is a match, not a
//! table of trait objects.

use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::boot_clock::BootClock;
use crate::devices::serial::{Console, SerialPort};
use crate::devices::virtio::mmio::MmioTransport;
use crate::layout::{MMIO_BASE, MMIO_SLOT_SIZE, SERIAL_PORT};
use crate::vm::ExitReason;

/// Command port of the keyboard controller, which resets a PC.
const I8042_COMMAND: u16 = 0x64;
/// "Pulse output line 0", wired to reset.
const I8042_RESET: u8 = 0xfe;
/// Last port of COM1.
const SERIAL_PORT_END: u16 = SERIAL_PORT + 7;

/// What a write did to the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the device.
    None,
    /// The guest has reset the machine.
    Reset,
}

/// All devices of a VM. vCPU threads share it.
pub struct Bus {
    /// COM1.
    pub serial: Mutex<SerialPort>,
    /// What the guest has written to it.
    pub console: Arc<Console>,
    /// Phase marks.
    pub boot_clock: Arc<BootClock>,
    /// Its port.
    pub boot_clock_port: u16,
    /// Virtio devices, by slot.
    pub slots: Vec<Arc<MmioTransport>>,
}

impl Bus {
    /// A guest writes to a port; `data` may be the bytes of a whole string instruction.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Effect {
        match port {
            SERIAL_PORT..=SERIAL_PORT_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                data.iter().for_each(|byte| serial.write(offset(port), *byte));
            }
            I8042_COMMAND if data.contains(&I8042_RESET) => return Effect::Reset,
            port if port == self.boot_clock_port => data.iter().for_each(|byte| self.boot_clock.mark(*byte)),
            _ => {}
        }
        Effect::None
    }

    /// A guest reads from a port. Where there is nothing, all bits are one, as on a PC.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..=SERIAL_PORT_END => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                data.iter_mut().for_each(|byte| *byte = serial.read(offset(port)));
            }
            // Its status: no input waits, the controller takes commands.
            I8042_COMMAND => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// A guest reads a device register.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = self.slot(address) {
            slot.read(offset, data);
        }
    }

    /// A guest writes a device register.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.slot(address) {
            slot.write(offset, data);
        }
    }

    /// A reset is how a guest ends, well or not: a panic stands on the console.
    pub fn reset_reason(&self) -> ExitReason {
        if self.console.shows_panic() {
            ExitReason::GuestPanic
        } else {
            ExitReason::GuestReset
        }
    }

    fn slot(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let beyond = address.checked_sub(MMIO_BASE)?;
        let index = usize::try_from(beyond / MMIO_SLOT_SIZE).ok()?;
        Some((self.slots.get(index)?, beyond % MMIO_SLOT_SIZE))
    }
}

fn offset(port: u16) -> u8 {
    u8::try_from(port - SERIAL_PORT).expect("a serial port has eight registers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::serial::test_serial;

    fn bus() -> Bus {
        let (serial, console) = test_serial();
        let boot_clock = Arc::new(BootClock::new().unwrap());
        Bus {
            serial: Mutex::new(serial),
            console,
            boot_clock,
            boot_clock_port: 0x3e0,
            slots: Vec::new(),
        }
    }

    #[test]
    fn ports_lead_to_their_devices() {
        let bus = bus();
        assert_eq!(bus.port_write(0x3f8, b"hello"), Effect::None);
        assert_eq!(bus.console.text(), "hello");
        assert_eq!(bus.port_write(0x3e0, &[0x10]), Effect::None);
        assert_eq!(bus.boot_clock.marks()[0].number, 0x10);
        let mut status = [0xaa];
        bus.port_read(0x64, &mut status);
        assert_eq!(status, [0]);
        bus.port_read(0x80, &mut status);
        assert_eq!(status, [0xff]);
    }

    #[test]
    fn reset_is_a_panic_when_the_console_shows_one() {
        let bus = bus();
        assert_eq!(bus.port_write(0x64, &[0xfe]), Effect::Reset);
        assert_eq!(bus.reset_reason(), ExitReason::GuestReset);
        bus.port_write(0x3f8, b"[    0.1] Kernel panic - not syncing: no init\n");
        assert_eq!(bus.reset_reason(), ExitReason::GuestPanic);
    }

    #[test]
    fn empty_addresses_read_as_ones() {
        let bus = bus();
        for address in [0, MMIO_BASE, MMIO_BASE + 0x1000, u64::MAX] {
            let mut data = [0; 4];
            bus.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
            bus.mmio_write(address, &data);
        }
    }
}
