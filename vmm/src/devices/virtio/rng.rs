//! Random numbers from the host (VIRTIO 1.2, 5.4 "Entropy Device"). The smallest device there is, and the
//! model for the others.

use rustix::rand::{GetRandomFlags, getrandom};

use super::chain::{Chain, ChainError, ChainLimit};
use super::{Activation, VirtioDevice};

/// Device id, 5.4.1.
const VIRTIO_ID_RNG: u32 = 4;

/// One queue. Linux keeps one buffer in it.
const QUEUE_SIZES: [u16; 1] = [16];

/// Linux asks for 64 bytes at a time, other drivers for a page or so. What is longer is refused, so that a
/// guest cannot have the host compute random numbers by the megabyte per kick.
const LIMIT: ChainLimit = ChainLimit {
    readable: 0,
    writable: 64 << 10,
};

/// Bytes made per system call, on the stack. getrandom is never cut short by a signal up to 256.
const PIECE: usize = 256;

/// Why a request got nothing.
#[derive(Debug, thiserror::Error)]
enum RngError {
    #[error("cannot use the driver's buffer")]
    Chain(#[source] ChainError),
    #[error("the host gives no random numbers")]
    Host(#[source] rustix::io::Errno),
}

/// The entropy device. It has no state of its own beyond its queue.
#[derive(Default)]
pub struct Rng {
    active: Option<Activation>,
}

impl Rng {
    /// A device that waits for its driver.
    pub fn new() -> Rng {
        Rng::default()
    }

    fn serve(&mut self) {
        let Some(Activation { memory, queues, .. }) = &mut self.active else {
            return;
        };
        let queue = &mut queues[0];
        while let Some(next) = queue.pop(memory, &LIMIT) {
            let (head, written) = match next {
                Ok(mut chain) => (chain.head(), fill(&mut chain, memory).unwrap_or(0)),
                // Given back unused: the driver sees 0 bytes and asks again or gives up.
                Err((head, _)) => (head, 0),
            };
            queue.push(memory, head, written);
        }
        queue.notify(memory);
    }
}

fn fill(chain: &mut Chain, memory: &super::GuestMemory) -> Result<u32, RngError> {
    let mut piece = [0; PIECE];
    while chain.writable_left() > 0 {
        let want = chain.writable_left().min(PIECE);
        let got = getrandom(&mut piece[..want], GetRandomFlags::empty()).map_err(RngError::Host)?;
        chain.write_all(memory, &piece[..got]).map_err(RngError::Chain)?;
    }
    Ok(u32::try_from(chain.writable_len()).expect("bounded by LIMIT"))
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn queue_kicked(&mut self, _index: usize) {
        self.serve();
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{Buffer, TestDriver, test_memory};
    use super::*;

    fn device() -> (Rng, TestDriver) {
        let memory = test_memory(1 << 20);
        let (driver, queue) = TestDriver::new(&memory, 0x1000, 16);
        let mut rng = Rng::new();
        rng.activate(Activation {
            memory,
            features: 0,
            queues: vec![queue],
        });
        (rng, driver)
    }

    #[test]
    fn buffers_are_filled_whole_and_differ() {
        let (mut rng, mut driver) = device();
        let first = driver.add(&[Buffer::Writable(700), Buffer::Writable(300)]);
        let second = driver.add(&[Buffer::Writable(1000)]);
        rng.queue_kicked(0);
        assert_eq!(driver.used(), [(first, 1000), (second, 1000)]);
        assert_ne!(driver.written(first, 1000), driver.written(second, 1000));
        // The last 64 bytes were all 0xa5 before; that they stay so has a chance of 2^-512.
        assert_ne!(driver.written(first, 1000)[936..], [0xa5; 64]);
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn requests_against_the_rules_come_back_empty() {
        let (mut rng, mut driver) = device();
        let readable = driver.add(&[Buffer::Readable(b"seed"), Buffer::Writable(8)]);
        let long = driver.add(&[Buffer::Writable(LIMIT.writable), Buffer::Writable(1)]);
        let good = driver.add(&[Buffer::Writable(8)]);
        rng.queue_kicked(0);
        assert_eq!(driver.used(), [(readable, 0), (long, 0), (good, 8)]);
    }

    #[test]
    fn reset_device_touches_nothing() {
        let (mut rng, mut driver) = device();
        driver.add(&[Buffer::Writable(8)]);
        rng.reset();
        rng.queue_kicked(0);
        assert!(driver.used().is_empty());
    }
}
