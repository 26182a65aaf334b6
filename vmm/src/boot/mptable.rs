//! The MP table, by which a guest without ACPI finds its processors and the wiring of interrupts (Intel
//! MultiProcessor Specification 1.4, chapter 4).

use vm_memory::{Bytes, GuestMemoryError};

use crate::devices::virtio::GuestMemory;
use crate::layout::{IOAPIC, IOAPIC_PINS, LAPIC, MP_TABLE, MP_TABLE_SIZE};

/// Length of the floating pointer structure; the configuration table follows it.
const POINTER_LEN: u32 = 16;
/// Length of the configuration table's header.
const HEADER_LEN: usize = 44;
const SPEC_1_4: u8 = 4;
/// Version of the integrated APICs: 0x14, as KVM's.
const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Family 6, and "has a local APIC" and "has an FPU": kernels read CPUID for the rest.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;

/// The whole table for `vcpus` processors: floating pointer, header, entries.
///
/// Every IOAPIC pin is an edge-triggered interrupt of one ISA bus, so a device's interrupt is its pin.
pub fn table(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for cpu in 0..vcpus {
        let flags = CPU_ENABLED | if cpu == 0 { CPU_BOOT } else { 0 };
        let mut entry = vec![ENTRY_PROCESSOR, cpu, APIC_VERSION, flags];
        entry.extend_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry.extend_from_slice(&CPU_FEATURES.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        add(&entry);
    }
    add(&[ENTRY_BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    // The IOAPIC's id must differ from those of the local APICs.
    let ioapic = vcpus;
    let [a, b, c, d] = IOAPIC.to_le_bytes();
    add(&[ENTRY_IOAPIC, ioapic, APIC_VERSION, CPU_ENABLED, a, b, c, d]);
    for pin in 0..IOAPIC_PINS {
        add(&[ENTRY_INTERRUPT, TYPE_INT, 0, 0, 0, pin, ioapic, pin]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, TYPE_EXTINT, 0, 0, 0, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, TYPE_NMI, 0, 0, 0, 0, ALL_LAPICS, 1]);

    let length = u16::try_from(HEADER_LEN + entries.len()).expect("1 KiB at the most");
    let mut config = Vec::with_capacity(usize::from(length));
    config.extend_from_slice(b"PCMP");
    config.extend_from_slice(&length.to_le_bytes());
    config.extend_from_slice(&[SPEC_1_4, 0]);
    config.extend_from_slice(b"MOAT    MICROVM     ");
    config.extend_from_slice(&[0; 6]); // no OEM table
    config.extend_from_slice(&count.to_le_bytes());
    config.extend_from_slice(&LAPIC.to_le_bytes());
    config.extend_from_slice(&[0; 4]); // no extended table
    config.extend_from_slice(&entries);
    config[7] = checksum(&config);

    let start = u32::try_from(MP_TABLE.0).expect("below 640 KiB") + POINTER_LEN;
    let mut table = b"_MP_".to_vec();
    table.extend_from_slice(&start.to_le_bytes());
    table.extend_from_slice(&[1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    table[10] = checksum(&table);
    table.extend_from_slice(&config);
    table
}

/// Writes the table to its place.
///
/// # Errors
/// When guest memory cannot take it; a bug.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), GuestMemoryError> {
    let table = table(vcpus);
    debug_assert!(table.len() <= MP_TABLE_SIZE);
    memory.write_slice(&table, MP_TABLE)
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;

    #[test]
    fn sums_are_zero_and_the_largest_table_fits() {
        for vcpus in 1..=MAX_VCPUS {
            let table = table(vcpus);
            assert!(table.len() <= MP_TABLE_SIZE, "{vcpus}: {}", table.len());
            assert_eq!(checksum(&table[..16]), 0);
            assert_eq!(checksum(&table[16..]), 0);
        }
    }

    #[test]
    fn table_tells_processors_and_pins() {
        let table = table(4);
        assert_eq!(&table[..4], b"_MP_");
        assert_eq!(u32::from_le_bytes(table[4..8].try_into().unwrap()), 0x9_fc10);
        let config = &table[16..];
        assert_eq!(
            usize::from(u16::from_le_bytes([config[4], config[5]])),
            config.len()
        );
        assert_eq!(u16::from_le_bytes([config[34], config[35]]), 4 + 1 + 1 + 24 + 2);
        assert_eq!(&config[44..48], [0, 0, 0x14, 3]);
        assert_eq!(&config[64..68], [0, 1, 0x14, 1]);
    }
}
