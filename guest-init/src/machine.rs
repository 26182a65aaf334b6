//! What the agent does to the machine itself, apart from the container: behind a trait, so that tests
//! neither set a clock nor power anything off.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use moat_protocol::phase::{BOOT_CLOCK_PORT, Phase};
use rustix::{
    mount::UnmountFlags,
    system::RebootCommand,
    time::{ClockId, Timespec},
};

/// The machine under the agent.
pub trait Machine {
    /// Sets the wall clock, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_clock(&mut self, realtime_ns: u64) -> io::Result<()>;
    /// Feeds the kernel's random pool and has it reseed at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn add_entropy(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Tells the host how far the guest has come.
    fn mark(&mut self, phase: Phase);
    /// Writes everything that file systems still hold back to where it belongs.
    fn flush(&mut self);
    /// Says something on the console.
    fn say(&mut self, text: &str);
}

/// The boot clock's port; without `/dev/port` marks go nowhere.
#[derive(Debug)]
pub struct BootClock(Option<File>);

impl BootClock {
    /// Opens `/dev/port`, wherever it is.
    pub fn open(path: impl AsRef<Path>) -> BootClock {
        BootClock(OpenOptions::new().write(true).open(path).ok())
    }

    /// Writes one byte to the port.
    pub fn mark(&self, phase: Phase) {
        if let Some(port) = &self.0 {
            // a host without a boot clock ignores the port, and so may we its absence
            let _ = port.write_at(&[phase.mark()], BOOT_CLOCK_PORT.into());
        }
    }
}

/// The real machine.
#[derive(Debug)]
pub struct Guest {
    clock: BootClock,
}

impl Guest {
    /// With its boot clock.
    pub fn new(clock: BootClock) -> Guest {
        Guest { clock }
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

impl Machine for Guest {
    fn set_clock(&mut self, realtime_ns: u64) -> io::Result<()> {
        let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let now = Timespec {
            tv_sec: i64::try_from(realtime_ns / NANOSECONDS).map_err(out_of_range)?,
            tv_nsec: i64::try_from(realtime_ns % NANOSECONDS).map_err(out_of_range)?,
        };
        Ok(rustix::time::clock_settime(ClockId::Realtime, now)?)
    }

    fn add_entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        moat_workload::sys::add_entropy(File::open("/dev/urandom")?, bytes)
    }

    fn mark(&mut self, phase: Phase) {
        self.clock.mark(phase);
    }

    fn flush(&mut self) {
        rustix::fs::sync();
        // ends the file system's session; without a cell there is none to end
        let _ = rustix::mount::unmount(moat_protocol::ports::GUEST_CELL, UnmountFlags::DETACH);
    }

    fn say(&mut self, text: &str) {
        crate::console::say(text);
    }
}

/// Ends the machine; the VMM takes the reset for a power-off.
pub fn power_off() -> ! {
    loop {
        // can only fail without CAP_SYS_BOOT
        let _ = rustix::system::reboot(RebootCommand::Restart);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
