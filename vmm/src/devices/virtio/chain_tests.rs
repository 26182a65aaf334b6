use proptest::prelude::*;

use super::super::test_driver::{Buffer, INDIRECT, NEXT, RawDescriptor, TestDriver, WRITE, test_memory};
use super::*;

const LIMIT: ChainLimit = ChainLimit {
    readable: 64 << 10,
    writable: 64 << 10,
};
const BASE: u64 = 0x1000;

fn one(buffers: &[Buffer], indirect: bool) -> (GuestMemory, TestDriver, Chain) {
    let memory = test_memory(1 << 20);
    let (mut driver, mut queue) = TestDriver::new(&memory, BASE, 16);
    if indirect {
        driver.add_indirect(buffers)
    } else {
        driver.add(buffers)
    };
    let chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
    (memory, driver, chain)
}

fn refused(descriptors: &[RawDescriptor]) -> ChainError {
    let memory = test_memory(1 << 20);
    let (mut driver, mut queue) = TestDriver::new(&memory, BASE, 16);
    for (i, descriptor) in descriptors.iter().enumerate() {
        driver.set_descriptor(u16::try_from(i).unwrap(), *descriptor);
    }
    driver.offer_head(0);
    queue.pop(&memory, &LIMIT).unwrap().unwrap_err().1
}

fn raw(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        addr,
        len,
        flags,
        next,
    }
}

#[test]
fn reads_and_writes_cross_descriptors_directly_and_indirectly() {
    for indirect in [false, true] {
        let buffers = [
            Buffer::Readable(b"he"),
            Buffer::Readable(b"llo wor"),
            Buffer::Writable(3),
            Buffer::Writable(5),
        ];
        let (memory, driver, mut chain) = one(&buffers, indirect);
        let mut word = [0; 5];
        chain.read_exact(&memory, &mut word).unwrap();
        assert_eq!(&word, b"hello");
        let mut rest = [0; 16];
        assert_eq!(chain.read_up_to(&memory, &mut rest).unwrap(), 4);
        assert_eq!(&rest[..4], b" wor");
        assert_eq!(chain.readable_left(), 0);

        chain.write_at(&memory, 4, b"tail").unwrap();
        chain.write_all(&memory, b"head").unwrap();
        assert_eq!(chain.writable_left(), 4);
        assert_eq!(driver.written(chain.head(), 8), b"headtail");
    }
}

#[test]
fn nothing_moves_when_the_chain_is_too_short() {
    let (memory, driver, mut chain) = one(&[Buffer::Readable(b"abc"), Buffer::Writable(2)], false);
    let error = chain.read_exact(&memory, &mut [0; 4]).unwrap_err();
    assert!(
        matches!(error, ChainError::Short { wanted: 4, left: 3 }),
        "{error}"
    );
    assert_eq!(chain.readable_left(), 3);
    assert!(matches!(
        chain.write_all(&memory, b"xyz"),
        Err(ChainError::Short { wanted: 3, left: 2 })
    ));
    assert!(matches!(
        chain.write_at(&memory, 3, b""),
        Err(ChainError::Short { wanted: 0, left: 0 })
    ));
    assert!(matches!(
        chain.write_at(&memory, usize::MAX, b"x"),
        Err(ChainError::Short { .. })
    ));
    assert!(matches!(chain.skip(4), Err(ChainError::Short { .. })));
    assert_eq!(driver.written(chain.head(), 2), [0xa5, 0xa5]);
}

#[test]
fn slices_are_views_of_the_same_bytes() {
    let buffers = [
        Buffer::Readable(b"0123456789"),
        Buffer::Writable(4),
        Buffer::Writable(4),
    ];
    let (memory, driver, mut chain) = one(&buffers, false);
    chain.skip(2).unwrap();
    let slices = chain.readable_slices(&memory, 5).unwrap();
    let mut seen = [0; 5];
    slices[0].copy_to(&mut seen[..]);
    assert_eq!((&seen, chain.readable_left()), (b"23456", 3));

    let slices = chain.writable_slices(&memory, 2, 4).unwrap();
    assert_eq!(slices.iter().map(VolatileSlice::len).collect::<Vec<_>>(), [2, 2]);
    for slice in &slices {
        slice.copy_from(&[7u8, 7]);
    }
    assert_eq!(
        driver.written(chain.head(), 8),
        [0xa5, 0xa5, 7, 7, 7, 7, 0xa5, 0xa5]
    );
    assert!(chain.writable_slices(&memory, 6, 3).is_err());
}

#[test]
fn range_outside_memory_is_refused() {
    let end = 1 << 20;
    for (addr, len) in [
        (end, 1),
        (end - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, 64),
        (1 << 40, 16),
    ] {
        let error = refused(&[raw(addr, len, 0, 0)]);
        assert!(
            matches!(error, ChainError::OutsideMemory { .. }),
            "{addr:#x}: {error}"
        );
    }
}

#[test]
fn chain_that_crosses_two_regions_is_one_buffer() {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)]).unwrap();
    let (mut driver, mut queue) = TestDriver::new(&memory, BASE, 16);
    driver.set_descriptor(0, raw((1 << 20) - 4, 8, WRITE, 0));
    driver.offer_head(0);
    let mut chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
    assert_eq!(chain.writable_slices(&memory, 0, 8).unwrap().len(), 2);
    chain.write_all(&memory, b"abcdefgh").unwrap();
    let mut seen = [0; 8];
    memory.read_slice(&mut seen, GuestAddress((1 << 20) - 4)).unwrap();
    assert_eq!(&seen, b"abcdefgh");
}

#[test]
fn readable_after_writable_is_refused() {
    let error = refused(&[raw(0x8000, 1, WRITE | NEXT, 1), raw(0x8000, 1, 0, 0)]);
    assert!(matches!(error, ChainError::ReadableAfterWritable), "{error}");
}

#[test]
fn limits_hold_for_each_direction() {
    let over = u32::try_from(LIMIT.readable).unwrap() + 1;
    for flags in [0, WRITE] {
        let error = refused(&[raw(0x8000, over, flags, 0)]);
        assert!(
            matches!(
                error,
                ChainError::TooLong {
                    len: 65_537,
                    limit: 65_536,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn loops_and_dangling_successors_are_malformed() {
    let itself = [raw(0x8000, 1, NEXT, 0)];
    let two = [raw(0x8000, 1, NEXT, 1), raw(0x8000, 1, NEXT, 0)];
    let dangling = [raw(0x8000, 1, NEXT, 16)];
    for chain in [&itself[..], &two, &dangling] {
        assert!(matches!(refused(chain), ChainError::Malformed(_)));
    }
}

#[test]
fn bad_indirect_tables_are_malformed() {
    // Not a multiple of a descriptor; outside memory; empty; one that names itself.
    for (addr, len) in [(0x8000, 17), (1 << 30, 16), (0x8000, 0), (BASE, 16)] {
        let error = refused(&[raw(addr, len, INDIRECT, 0)]);
        assert!(
            matches!(error, ChainError::Malformed(_)),
            "{addr:#x}+{len}: {error}"
        );
    }
}

#[test]
fn very_long_indirect_table_stops_at_the_limit_of_descriptors() {
    let memory = test_memory(4 << 20);
    let (mut driver, mut queue) = TestDriver::new(&memory, BASE, 16);
    let buffers = vec![Buffer::Readable(b"x"); MAX_DESCRIPTORS + 1];
    driver.add_indirect(&buffers);
    let (_, error) = queue.pop(&memory, &LIMIT).unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            ChainError::TooLong {
                limit: MAX_DESCRIPTORS,
                ..
            }
        ),
        "{error}"
    );
}

/// Descriptors near what a driver would write, then anything at all.
fn hostile_descriptor() -> impl Strategy<Value = RawDescriptor> {
    let addr = prop_oneof![0u64..0x11_0000, 0xf_ff00u64..0x10_0100, any::<u64>()];
    let len = prop_oneof![0u32..0x200, any::<u32>(), Just(16), Just(64)];
    let flags = prop_oneof![0u16..8, any::<u16>()];
    let next = prop_oneof![0u16..17, any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| raw(addr, len, flags, next))
}

proptest! {
    /// Whatever the table holds: no panic, no end beyond memory or limits, and each span can be used.
    #[test]
    fn hostile_tables_yield_checked_chains_or_errors(
        table in proptest::collection::vec(hostile_descriptor(), 16),
        indirect in proptest::collection::vec(hostile_descriptor(), 4),
        heads in proptest::collection::vec(prop_oneof![0u16..16, any::<u16>()], 1..16),
    ) {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, BASE, 16);
        for (i, descriptor) in table.iter().enumerate() {
            driver.set_descriptor(u16::try_from(i).unwrap(), *descriptor);
        }
        // A few bytes that indirect descriptors with small addresses may hit.
        for (i, d) in indirect.iter().enumerate() {
            let at = 16 * i as u64;
            memory.write_obj(d.addr, GuestAddress(at)).unwrap();
            memory.write_obj(d.len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(u32::from(d.flags) | u32::from(d.next) << 16, GuestAddress(at + 12)).unwrap();
        }
        for head in &heads {
            driver.offer_head(*head);
        }
        let mut popped = 0;
        while let Some(result) = queue.pop(&memory, &LIMIT) {
            popped += 1;
            if let Ok(mut chain) = result {
                prop_assert!(chain.readable_left() <= LIMIT.readable);
                prop_assert!(chain.writable_len() <= LIMIT.writable);
                let mut bytes = vec![0; chain.readable_left()];
                chain.read_exact(&memory, &mut bytes).unwrap();
                let len = chain.writable_len();
                let total: usize = chain.writable_slices(&memory, 0, len).unwrap().iter().map(|s| s.len()).sum();
                prop_assert_eq!(total, len);
                queue.push(&memory, chain.head(), 0);
            }
        }
        prop_assert_eq!(popped, heads.len());
    }

    /// Any split of reads gives the same bytes as one read.
    #[test]
    fn reads_in_pieces_equal_one_read(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..8),
        steps in proptest::collection::vec(0usize..40, 1..20),
    ) {
        let buffers: Vec<_> = parts.iter().map(|part| Buffer::Readable(part)).collect();
        let (memory, _driver, mut chain) = one(&buffers, false);
        let mut seen = Vec::new();
        for step in steps {
            let mut piece = vec![0; step];
            let got = chain.read_up_to(&memory, &mut piece).unwrap();
            seen.extend_from_slice(&piece[..got]);
        }
        let whole = parts.concat();
        prop_assert_eq!(&whole[..seen.len()], &seen[..]);
        prop_assert_eq!(chain.readable_left(), whole.len() - seen.len());
    }
}
