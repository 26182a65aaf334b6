use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::super::test_driver::test_memory;
use super::*;

/// A device that counts what it is told.
#[derive(Default)]
struct Counts {
    activated: AtomicUsize,
    reset: AtomicUsize,
    kicked: AtomicUsize,
}

struct Probe {
    counts: Arc<Counts>,
    queues: Option<Vec<DeviceQueue>>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn name(&self) -> &str {
        "probe"
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = offset.wrapping_add(i as u64).to_le_bytes()[0];
        }
    }
    fn activate(&mut self, activation: Activation) {
        assert!(self.queues.is_none(), "activated twice without a reset");
        assert_eq!(activation.queues.len(), 2);
        self.queues = Some(activation.queues);
        self.counts.activated.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&mut self) {
        assert!(self.queues.take().is_some(), "reset without activation");
        self.counts.reset.fetch_add(1, Ordering::SeqCst);
    }
    fn queue_kicked(&mut self, index: usize) {
        assert!(self.queues.is_some(), "kicked before activation");
        assert!(index < 2);
        self.counts.kicked.fetch_add(1, Ordering::SeqCst);
    }
}

fn transport() -> (MmioTransport, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let device = Box::new(Probe {
        counts: Arc::clone(&counts),
        queues: None,
    });
    let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    (
        MmioTransport::new(device, test_memory(1 << 20), interrupt),
        counts,
    )
}

fn get(transport: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn set(transport: &MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn agree(transport: &MmioTransport, features: u64) {
    set(transport, STATUS, ACKNOWLEDGE);
    set(transport, STATUS, ACKNOWLEDGE | DRIVER);
    for sel in [0, 1] {
        set(transport, DRIVER_FEATURES_SEL, sel);
        set(transport, DRIVER_FEATURES, half(features, sel));
    }
    set(transport, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

fn set_up(transport: &MmioTransport, queue: u32, size: u32, base: u32) {
    set(transport, QUEUE_SEL, queue);
    set(transport, QUEUE_NUM, size);
    for (low, high, address) in [
        (QUEUE_DESC_LOW, QUEUE_DESC_HIGH, base),
        (QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, base + 0x400),
        (QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH, base + 0x800),
    ] {
        set(transport, low, address);
        set(transport, high, 0);
    }
    set(transport, QUEUE_READY, 1);
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const ALL_OK: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

#[test]
fn driver_that_follows_the_rules_gets_a_running_device() {
    let (transport, counts) = transport();
    assert_eq!(
        [MAGIC_VALUE, VERSION_NUMBER, DEVICE_ID].map(|at| get(&transport, at)),
        [0x7472_6976, 2, 42]
    );
    assert_eq!(get(&transport, DEVICE_FEATURES), (1 << 5) | (1 << 28) | (1 << 29));
    set(&transport, DEVICE_FEATURES_SEL, 1);
    assert_eq!(get(&transport, DEVICE_FEATURES), 1);
    agree(&transport, VERSION_1 | (1 << 5));
    assert_eq!(get(&transport, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    set_up(&transport, 0, 16, 0x1000);
    set_up(&transport, 1, 4, 0x2000);
    assert_eq!(get(&transport, QUEUE_NUM_MAX), 8);
    set(&transport, STATUS, ALL_OK);
    assert_eq!((get(&transport, STATUS), transport.is_running()), (ALL_OK, true));
    assert_eq!(counts.activated.load(Ordering::SeqCst), 1);

    set(&transport, QUEUE_NOTIFY, 1);
    set(&transport, QUEUE_NOTIFY, 2);
    assert_eq!(counts.kicked.load(Ordering::SeqCst), 1);

    set(&transport, STATUS, 0);
    assert_eq!(
        (get(&transport, STATUS), counts.reset.load(Ordering::SeqCst)),
        (0, 1)
    );
    assert_eq!(transport.mistakes(), 0);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [0, 1 << 5, VERSION_1 | (1 << 6), VERSION_1 | (1 << 40)] {
        let (transport, _) = transport();
        agree(&transport, features);
        assert_eq!(get(&transport, STATUS), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
}

#[test]
fn queues_that_cannot_work_make_the_device_ask_for_a_reset() {
    // Outside memory; not aligned; size no power of two; too large; not ready.
    for (size, base, ready) in [
        (8, 0x10_0000, 1),
        (8, 0x1008, 1),
        (7, 0x1000, 1),
        (32, 0x1000, 1),
        (8, 0x1000, 0),
    ] {
        let (transport, counts) = transport();
        agree(&transport, VERSION_1);
        set_up(&transport, 0, 16, 0x4000);
        set_up(&transport, 1, size, base);
        set(&transport, QUEUE_READY, ready);
        set(&transport, STATUS, ALL_OK);
        assert_eq!(get(&transport, STATUS), ALL_OK | NEEDS_RESET);
        assert_eq!(get(&transport, INTERRUPT_STATUS), 2);
        assert_eq!(counts.activated.load(Ordering::SeqCst), 0);
        set(&transport, QUEUE_NOTIFY, 0);
        set(&transport, STATUS, 0);
        assert_eq!(
            (get(&transport, STATUS), counts.reset.load(Ordering::SeqCst)),
            (0, 0)
        );
    }
}

#[test]
fn steps_out_of_turn_have_no_effect() {
    let (transport, counts) = transport();
    set(&transport, STATUS, DRIVER_OK);
    set(&transport, STATUS, FEATURES_OK);
    set_up(&transport, 0, 8, 0x1000);
    assert_eq!((get(&transport, STATUS), get(&transport, QUEUE_READY)), (0, 0));
    agree(&transport, VERSION_1);
    set(&transport, STATUS, ACKNOWLEDGE);
    assert_eq!(
        get(&transport, STATUS),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "bits are not taken away"
    );
    assert_eq!(counts.activated.load(Ordering::SeqCst), 0);
    assert!(transport.mistakes() > 0);
}

#[test]
fn shared_memory_is_absent() {
    let (transport, _) = transport();
    assert_eq!(
        [0xb0, 0xb4, 0xb8, 0xbc].map(|at| get(&transport, at)),
        [u32::MAX; 4]
    );
}

#[test]
fn interrupt_status_is_read_while_the_device_works() {
    let (transport, _) = transport();
    transport.interrupt.queue_used();
    transport.with_device(|_| {
        assert_eq!(get(&transport, INTERRUPT_STATUS), 1);
        set(&transport, INTERRUPT_ACK, 1);
    });
    assert_eq!(get(&transport, INTERRUPT_STATUS), 0);
}

fn access() -> impl Strategy<Value = (u64, Vec<u8>, bool)> {
    let offset = prop_oneof![
        8 => (0u64..0x44).prop_map(|word| 4 * word),
        4 => Just(STATUS),
        1 => any::<u64>(),
    ];
    let word = prop_oneof![0u32..16, any::<u32>(), Just(ALL_OK), Just(0x1000)]
        .prop_map(|v| v.to_le_bytes().to_vec());
    let data = prop_oneof![9 => word, 1 => proptest::collection::vec(any::<u8>(), 0..9)];
    (offset, data, any::<bool>())
}

proptest! {
    /// The probe itself asserts that activations, resets and kicks come in order.
    #[test]
    fn any_register_access_is_survived(
        start in 0usize..3,
        accesses in proptest::collection::vec(access(), 0..200),
    ) {
        let (transport, _) = transport();
        if start > 0 {
            agree(&transport, VERSION_1);
            set_up(&transport, 0, 16, 0x1000);
            set_up(&transport, 1, 8, 0x2000);
        }
        if start > 1 {
            set(&transport, STATUS, ALL_OK);
        }
        for (offset, mut data, write) in accesses {
            if write { transport.write(offset, &data) } else { transport.read(offset, &mut data) }
        }
        let state = transport.state();
        prop_assert_eq!(state.queues.len(), 2);
        prop_assert_eq!(state.status & !(ALL_OK | FAILED | NEEDS_RESET), 0);
    }
}
