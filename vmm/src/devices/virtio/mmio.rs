//! The MMIO transport, version 2 (VIRTIO 1.2, 4.2 "Virtio Over MMIO").
//!
//! The driver's part of the status register is a small state machine: a device is reset, then features
//! are agreed, then queues are set up, then it runs. Each register counts only in its state; a write out
//! of turn is counted and has no effect. Registers and device lie behind one lock, except the interrupt
//! status, which drivers touch on every interrupt and which must not wait for a device at work.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::interrupt::Interrupt;
use super::queue::DeviceQueue;
use super::{Activation, GuestMemory, VirtioDevice};

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Vendor id: "moat".
const VENDOR: u32 = u32::from_le_bytes(*b"moat");

// Register offsets, 4.2.2.
const MAGIC_VALUE: u64 = 0x000;
const VERSION_NUMBER: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// The driver kicks a queue by writing its index here: the offset of the ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Shared memory registers; a length of all ones says that the device has no such region.
const SHM_SEL: u64 = 0x0ac;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

// Device status, 2.1.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = 128;

/// Features of rings that every device gets.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What the driver has set up of one queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Descriptors; 0 means as many as the device takes.
    pub size: u32,
    /// The driver says that it is complete.
    pub ready: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring ("driver area").
    pub avail: u64,
    /// Used ring ("device area").
    pub used: u64,
}

/// The transport's registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// Device status.
    pub status: u32,
    /// Which half of the offered features is read.
    pub device_features_sel: u32,
    /// Which half of the accepted features is written.
    pub driver_features_sel: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// Queue that the queue registers mean.
    pub queue_sel: u32,
    /// Every queue.
    pub queues: Vec<QueueSetup>,
    /// Interrupt reasons not acknowledged.
    pub interrupt_status: u32,
}

/// One slot: registers and the device behind them.
pub struct MmioTransport {
    interrupt: Interrupt,
    memory: GuestMemory,
    registers: Mutex<Registers>,
}

struct Registers {
    device: Box<dyn VirtioDevice>,
    state: MmioState,
    mistakes: u64,
}

impl MmioTransport {
    /// A device that was just reset.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Interrupt) -> MmioTransport {
        let queues = vec![QueueSetup::default(); device.queue_sizes().len()];
        let state = MmioState {
            queues,
            ..Default::default()
        };
        MmioTransport {
            interrupt,
            memory,
            registers: Mutex::new(Registers {
                device,
                state,
                mistakes: 0,
            }),
        }
    }

    /// The driver reads `data.len()` bytes at `offset` of the slot.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.lock().device.read_config(at, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            let value = match offset {
                INTERRUPT_STATUS => self.interrupt.status(),
                other => self.lock().read(other),
            };
            *word = value.to_le_bytes();
        }
    }

    /// The driver writes at `offset` of the slot.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.lock().device.write_config(at, data);
        }
        // 4.2.2.2: registers are written whole and aligned.
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return self.lock().mistake();
        };
        let value = u32::from_le_bytes(word);
        match offset {
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            // A kick that no ioeventfd took: a queue that the device does not have.
            QUEUE_NOTIFY => self.queue_kicked(value as usize),
            STATUS => self.lock().set_status(value, &self.memory, &self.interrupt),
            other => self.lock().write(other, value),
        }
    }

    /// Queue `index` was kicked.
    pub fn queue_kicked(&self, index: usize) {
        let mut registers = self.lock();
        if !registers.running() || index >= registers.state.queues.len() {
            // A kick that was on its way when the driver reset the device is no mistake, and is one too few
            // to count.
            return;
        }
        registers.device.queue_kicked(index);
    }

    /// The device's own descriptor is ready.
    pub fn event_ready(&self) {
        self.lock().device.event_ready();
    }

    /// Does something with the device.
    pub fn with_device<T>(&self, action: impl FnOnce(&mut dyn VirtioDevice) -> T) -> T {
        action(&mut *self.lock().device)
    }

    /// The registers, for a snapshot.
    pub fn state(&self) -> MmioState {
        MmioState {
            interrupt_status: self.interrupt.status(),
            ..self.lock().state.clone()
        }
    }

    /// Writes that had no effect.
    pub fn mistakes(&self) -> u64 {
        self.lock().mistakes
    }

    /// Features have been agreed on and queues set up.
    pub fn is_running(&self) -> bool {
        self.lock().running()
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers {
    fn read(&self, offset: u64) -> u32 {
        let queue = self.state.queue_sel as usize;
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION_NUMBER => VERSION,
            DEVICE_ID => self.device.device_type(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered(), self.state.device_features_sel),
            QUEUE_NUM_MAX => self.device.queue_sizes().get(queue).copied().unwrap_or(0).into(),
            QUEUE_READY => self
                .state
                .queues
                .get(queue)
                .is_some_and(|setup| setup.ready)
                .into(),
            STATUS => self.state.status,
            SHM_SEL..=SHM_BASE_HIGH => u32::MAX,
            // No device here changes fields that a driver reads in two accesses.
            CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.state.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.state.driver_features_sel = value,
            DRIVER_FEATURES if self.negotiating() => self.accept_features(value),
            QUEUE_SEL => self.state.queue_sel = value,
            SHM_SEL => {}
            _ => self.set_up_queue(offset, value),
        }
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let queue = self.state.queue_sel as usize;
        let running = !self.configuring();
        let Some(setup) = self.state.queues.get_mut(queue).filter(|_| !running) else {
            return self.mistake();
        };
        match offset {
            QUEUE_READY => setup.ready = value & 1 != 0,
            // A queue that is ready does not change.
            _ if setup.ready => self.mistake(),
            QUEUE_NUM => setup.size = value,
            QUEUE_DESC_LOW => set_low(&mut setup.desc, value),
            QUEUE_DESC_HIGH => set_high(&mut setup.desc, value),
            QUEUE_DRIVER_LOW => set_low(&mut setup.avail, value),
            QUEUE_DRIVER_HIGH => set_high(&mut setup.avail, value),
            QUEUE_DEVICE_LOW => set_low(&mut setup.used, value),
            QUEUE_DEVICE_HIGH => set_high(&mut setup.used, value),
            _ => self.mistake(),
        }
    }

    /// 3.1.1 "Driver Requirements: Device Initialization".
    fn set_status(&mut self, value: u32, memory: &GuestMemory, interrupt: &Interrupt) {
        let status = self.state.status;
        if value == 0 {
            return self.reset(interrupt);
        }
        // Bits are only ever added, each after those before it.
        let added = value & !status;
        if status & !NEEDS_RESET & !value != 0 || status & FAILED != 0 {
            return self.mistake();
        }
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, FAILED] {
            if added & bit == 0 {
                continue;
            }
            let before = match bit {
                ACKNOWLEDGE | FAILED => 0,
                DRIVER => ACKNOWLEDGE,
                FEATURES_OK => ACKNOWLEDGE | DRIVER,
                _ => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            };
            if self.state.status & before != before {
                return self.mistake();
            }
            match bit {
                // The driver reads the status back to see whether its choice was taken.
                FEATURES_OK if !self.features_acceptable() => return self.mistake(),
                DRIVER_OK => self.activate(memory, interrupt),
                _ => {}
            }
            self.state.status |= bit;
        }
    }

    fn activate(&mut self, memory: &GuestMemory, interrupt: &Interrupt) {
        let sizes = self.device.queue_sizes();
        let event_idx = self.state.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues: Option<Vec<DeviceQueue>> = self
            .state
            .queues
            .iter()
            .zip(sizes)
            .map(|(setup, max)| {
                Some(DeviceQueue::new(
                    queue(setup, *max, event_idx, memory)?,
                    interrupt.clone(),
                ))
            })
            .collect();
        match queues {
            Some(queues) => {
                let features = self.state.driver_features;
                self.device.activate(Activation {
                    memory: memory.clone(),
                    features,
                    queues,
                });
            }
            // 2.1.2: the device says that it cannot go on.
            None => {
                self.mistake();
                self.state.status |= NEEDS_RESET;
                interrupt.config_changed();
            }
        }
    }

    fn reset(&mut self, interrupt: &Interrupt) {
        if self.running() {
            self.device.reset();
        }
        let queues = vec![QueueSetup::default(); self.state.queues.len()];
        self.state = MmioState {
            queues,
            ..Default::default()
        };
        interrupt.set_status(0);
    }

    fn accept_features(&mut self, value: u32) {
        let accepted = &mut self.state.driver_features;
        match self.state.driver_features_sel {
            0 => set_low(accepted, value),
            1 => set_high(accepted, value),
            // There are no features beyond 64.
            _ if value == 0 => {}
            _ => self.mistake(),
        }
    }

    fn features_acceptable(&self) -> bool {
        let accepted = self.state.driver_features;
        accepted & !self.offered() == 0 && accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn offered(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    fn negotiating(&self) -> bool {
        self.state.status & (DRIVER | FEATURES_OK) == DRIVER
    }

    fn configuring(&self) -> bool {
        self.state.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK
    }

    fn running(&self) -> bool {
        self.state.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    fn mistake(&mut self) {
        self.mistakes += 1;
    }
}

/// A queue over rings that lie in guest memory, aligned, and of a size that the device takes.
fn queue(setup: &QueueSetup, max: u16, event_idx: bool, memory: &GuestMemory) -> Option<Queue> {
    let mut queue = Queue::new(max).ok()?;
    let size = if setup.size == 0 {
        max
    } else {
        u16::try_from(setup.size).ok()?
    };
    queue.try_set_size(size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(setup.desc)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(setup.avail)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(setup.used)).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(setup.ready);
    (queue.is_valid(memory) && setup.avail != 0).then_some(queue)
}

fn half(value: u64, sel: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match sel {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = (*target & !0xffff_ffff) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = (*target & 0xffff_ffff) | (u64::from(value) << 32);
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
