use proptest::prelude::*;

use super::super::test_driver::{Buffer, TestDriver, test_memory};
use super::*;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A disk of 300 sectors whose bytes tell their sector.
fn disk(read_only: bool) -> (Block, TestDriver, File) {
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..300u32 * 512)
        .map(|at| (at / 512 % 251).to_le_bytes()[0])
        .collect();
    file.write_all_at(&content, 0).unwrap();
    file.write_all_at(b"tail", 300 * 512).unwrap(); // not a whole sector: not on the disk
    let memory = test_memory(16 << 20);
    let (driver, queue) = TestDriver::new(&memory, 0x1000, 128);
    let config = BlockConfig {
        file: file.try_clone().unwrap(),
        read_only,
        id: "0123456789abcdefghijKLM".into(),
    };
    let mut block = Block::new(config).unwrap();
    block.activate(Activation {
        memory,
        features: 0,
        queues: vec![queue],
    });
    (block, driver, file)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// The status, and the bytes that a read brought.
fn read(
    block: &mut Block,
    driver: &mut TestDriver,
    kind: u32,
    sector: u64,
    parts: &[usize],
) -> (u8, Vec<u8>) {
    let header = header(kind, sector);
    let mut buffers = vec![Buffer::Readable(&header)];
    buffers.extend(parts.iter().map(|len| Buffer::Writable(*len)));
    buffers.push(Buffer::Writable(1));
    let head = driver.add(&buffers);
    block.queue_kicked(0);
    let len: usize = parts.iter().sum();
    let mut data = driver.written(head, len + 1);
    let status = data.pop().unwrap();
    let used = driver.used();
    let expected = if status == OK {
        u32::try_from(len).unwrap() + 1
    } else {
        1
    };
    assert_eq!(used, [(head, expected)]);
    (status, data)
}

fn write(block: &mut Block, driver: &mut TestDriver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let head = driver.add(&[
        Buffer::Readable(&header(kind, sector)),
        Buffer::Readable(data),
        Buffer::Writable(1),
    ]);
    block.queue_kicked(0);
    assert_eq!(driver.used(), [(head, 1)]);
    driver.written(head, 1)[0]
}

#[test]
fn reads_cross_buffers_and_pieces() {
    let (mut block, mut driver, _) = disk(true);
    let (status, data) = read(&mut block, &mut driver, VIRTIO_BLK_T_IN, 2, &[512, 1024]);
    assert_eq!((status, data[0], data[512], data[1535]), (OK, 2, 3, 4));
    let (status, data) = read(&mut block, &mut driver, VIRTIO_BLK_T_IN, 0, &[300 * 512]);
    assert_eq!((status, data.len(), data[299 * 512]), (OK, 300 * 512, 48));
}

#[test]
fn writes_arrive_and_are_read_back() {
    let (mut block, mut driver, file) = disk(false);
    let data = vec![0xee; 130 * 512];
    assert_eq!(write(&mut block, &mut driver, VIRTIO_BLK_T_OUT, 100, &data), OK);
    assert_eq!(write(&mut block, &mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    let mut seen = vec![0; data.len()];
    file.read_exact_at(&mut seen, 100 * 512).unwrap();
    assert_eq!(seen, data);
    let (status, data) = read(&mut block, &mut driver, VIRTIO_BLK_T_IN, 99, &[1024]);
    assert_eq!((status, data[511], data[512]), (OK, 99, 0xee));
}

#[test]
fn read_only_disk_stays_as_it_is() {
    let (mut block, mut driver, file) = disk(true);
    assert_eq!(
        write(&mut block, &mut driver, VIRTIO_BLK_T_OUT, 0, &[0xee; 512]),
        IOERR
    );
    let mut seen = [0xff; 512];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [0; 512]);
    assert_ne!(block.features() & (1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(
        block.state(),
        BlockState {
            requests: 1,
            errors: 1
        }
    );
}

#[test]
fn requests_beyond_the_end_or_of_parts_of_sectors_fail() {
    let (mut block, mut driver, file) = disk(false);
    for (sector, len) in [
        (300, 512),
        (299, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 100),
    ] {
        assert_eq!(
            read(&mut block, &mut driver, VIRTIO_BLK_T_IN, sector, &[len]).0,
            IOERR,
            "{sector}"
        );
        assert_eq!(
            write(&mut block, &mut driver, VIRTIO_BLK_T_OUT, sector, &vec![1; len]),
            IOERR,
            "{sector}"
        );
    }
    let mut tail = [0; 4];
    file.read_exact_at(&mut tail, 300 * 512).unwrap();
    assert_eq!(&tail, b"tail");
}

#[test]
fn id_is_cut_at_twenty_bytes_and_others_are_unsupported() {
    let (mut block, mut driver, _) = disk(false);
    let (status, id) = read(&mut block, &mut driver, VIRTIO_BLK_T_GET_ID, 0, &[20]);
    assert_eq!((status, id.as_slice()), (OK, &b"0123456789abcdefghij"[..]));
    assert_eq!(read(&mut block, &mut driver, 11, 0, &[512]).0, UNSUPP);
}

#[test]
fn requests_without_header_or_status_are_survived() {
    let (mut block, mut driver, _) = disk(false);
    let no_status = driver.add(&[
        Buffer::Readable(&header(VIRTIO_BLK_T_OUT, 0)),
        Buffer::Readable(&[1; 512]),
    ]);
    let short = driver.add(&[Buffer::Readable(&[0; 15]), Buffer::Writable(1)]);
    block.queue_kicked(0);
    assert_eq!(driver.used(), [(no_status, 0), (short, 1)]);
    assert_eq!(driver.written(short, 1), [IOERR]);
}

#[test]
fn configuration_tells_capacity_and_ends() {
    let (block, _, _) = disk(false);
    let mut config = [0xff; 8];
    block.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 300);
    for offset in [14, 16, 1000, u64::MAX] {
        let mut data = [0; 4];
        block.read_config(offset, &mut data);
        assert_eq!(data[2..], [0, 0], "{offset}");
    }
}

proptest! {
    /// Any request: an answer, and never a byte outside the disk.
    #[test]
    fn any_request_is_answered(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..310, any::<u64>()],
        readable in 0usize..2000,
        writable in 0usize..2000,
    ) {
        let (mut block, mut driver, file) = disk(false);
        let (header, data) = (header(kind, sector), vec![0xee; readable]);
        let mut buffers = vec![Buffer::Readable(&header), Buffer::Readable(&data)];
        if writable > 0 {
            buffers.push(Buffer::Writable(writable));
        }
        let head = driver.add(&buffers);
        block.queue_kicked(0);
        let used = driver.used();
        prop_assert_eq!((used.len(), used[0].0), (1, head));
        prop_assert_eq!(file.metadata().unwrap().len(), 300 * 512 + 4);
    }
}
