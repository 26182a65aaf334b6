use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_setfl};

use super::super::credit::BUF_ALLOC;
use super::super::endpoint::Endpoint;
use super::super::fake_guest::{FakeGuest, GUEST_CID, GuestSockets, RX};
use super::super::handle::{StreamEvent, StreamId};
use super::super::packet::{Header, Op};
use super::*;

const GUEST_PORT: u32 = 2;
const SEND: u32 = 2;
const BOTH: u32 = 3;

fn non_blocking(fd: impl Into<OwnedFd>) -> OwnedFd {
    let fd = fd.into();
    fcntl_setfl(&fd, OFlags::NONBLOCK).unwrap();
    fd
}

fn input() -> (PipeWriter, Endpoint) {
    let (reader, writer) = pipe().unwrap();
    (
        writer,
        Endpoint {
            input: Some(non_blocking(reader)),
            output: None,
        },
    )
}

fn output() -> (PipeReader, Endpoint) {
    let (reader, writer) = pipe().unwrap();
    (
        reader,
        Endpoint {
            input: None,
            output: Some(non_blocking(writer)),
        },
    )
}

/// One end for the test, and an endpoint that uses the other for both directions.
fn socket() -> (UnixStream, Endpoint) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let endpoint = Endpoint {
        input: Some(theirs.try_clone().unwrap().into()),
        output: Some(theirs.into()),
    };
    (ours, endpoint)
}

/// A running guest with one stream, accepted.
fn connected(preamble: &[u8], endpoint: Endpoint) -> (FakeGuest, GuestSockets, StreamId) {
    let mut guest = FakeGuest::new();
    guest.activate(true);
    let id = guest
        .handle
        .connect(GUEST_PORT, preamble.to_vec(), endpoint)
        .unwrap();
    let mut sockets = GuestSockets::default();
    sockets.run(&mut guest);
    assert_eq!(guest.events, vec![(id, StreamEvent::Opened)]);
    (guest, sockets, id)
}

/// Bytes that repeat late, and at no multiple of a buffer's size.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn from_guest(op: Op, dst_port: u32) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: 2,
        src_port: 77,
        dst_port,
        socket_type: 1,
        op: op.wire(),
        ..Header::default()
    }
}

#[test]
fn the_context_id_is_the_configuration() {
    let (device, _handle) = Vsock::new(VsockConfig {
        guest_cid: 0x0403_0201,
    })
    .unwrap();
    let mut all = [0xff; 8];
    device.read_config(0, &mut all);
    assert_eq!(all, [1, 2, 3, 4, 0, 0, 0, 0]);
    let mut tail = [0; 4];
    device.read_config(2, &mut tail);
    assert_eq!(tail, [3, 4, 0, 0]);
    device.read_config(6, &mut tail);
    device.read_config(u64::MAX, &mut tail);
    assert_eq!((device.device_type(), device.features()), (19, 0));
}

#[test]
fn a_reserved_context_id_is_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(
            Vsock::new(VsockConfig { guest_cid: cid }),
            Err(Error::ReservedCid { .. })
        ));
    }
}

#[test]
fn a_stream_asked_for_before_the_driver_is_up_opens_when_it_is() {
    let mut guest = FakeGuest::new();
    let (_writer, endpoint) = input();
    let id = guest
        .handle
        .connect(GUEST_PORT, b"preamble".to_vec(), endpoint)
        .unwrap();
    guest.run();
    // The driver resets a device before it uses it.
    guest.device.reset();
    guest.activate(true);
    let mut sockets = GuestSockets::default();
    sockets.run(&mut guest);
    assert_eq!(guest.events, vec![(id, StreamEvent::Opened)]);
    assert_eq!(sockets.streams[&id.0].received, b"preamble");
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let (mut test_end, endpoint) = socket();
    let mut guest = FakeGuest::new();
    guest.activate(true);
    let id = guest.handle.connect(GUEST_PORT, Vec::new(), endpoint).unwrap();
    guest.run();
    let [(request, _)] = guest.receive(true).try_into().unwrap();
    assert_eq!((request.op, request.dst_port), (Op::Request.wire(), GUEST_PORT));
    let refusal = Header {
        src_port: GUEST_PORT,
        ..from_guest(Op::Rst, id.0)
    };
    guest.send(&refusal, &[]);
    guest.run();
    assert_eq!(guest.events, vec![(id, StreamEvent::Refused)]);
    assert_eq!(test_end.read(&mut [0; 8]).unwrap(), 0, "the host's end is closed");
    assert_eq!(guest.receive(true), vec![], "a reset is not answered");
}

#[test]
fn a_guest_that_never_answers_can_be_given_up() {
    let (mut test_end, endpoint) = socket();
    let mut guest = FakeGuest::new();
    guest.activate(true);
    let id = guest.handle.connect(GUEST_PORT, Vec::new(), endpoint).unwrap();
    guest.run();
    guest.receive(true);
    guest.handle.close(id);
    guest.run();
    assert_eq!(guest.events, vec![(id, StreamEvent::Aborted)]);
    assert_eq!(test_end.read(&mut [0; 8]).unwrap(), 0);
    let [(reset, _)] = guest.receive(true).try_into().unwrap();
    assert_eq!(reset.op, Op::Rst.wire());
}

#[test]
fn streams_that_the_guest_opens_and_packets_of_no_stream_are_reset() {
    let mut guest = FakeGuest::new();
    guest.activate(true);
    for op in [Op::Request, Op::Rw, Op::Shutdown, Op::CreditRequest] {
        guest.send(&from_guest(op, 1024), &[]);
        let [(reset, _)] = guest.receive(true).try_into().unwrap();
        assert_eq!(
            (reset.op, reset.src_port, reset.dst_port),
            (Op::Rst.wire(), 1024, 77),
            "{op:?}"
        );
    }
    let seqpacket = Header {
        socket_type: 2,
        ..from_guest(Op::Request, 5)
    };
    guest.send(&seqpacket, &[]);
    let [(reset, _)] = guest.receive(true).try_into().unwrap();
    assert_eq!((reset.op, reset.socket_type), (Op::Rst.wire(), 2));
    // Nobody to answer to.
    guest.send(
        &Header {
            src_cid: 9,
            ..from_guest(Op::Request, 5)
        },
        &[],
    );
    guest.send(
        &Header {
            dst_cid: 1,
            ..from_guest(Op::Request, 5)
        },
        &[],
    );
    assert_eq!(guest.receive(true), vec![]);
}

#[test]
fn resets_owed_wait_for_buffers_and_are_bounded() {
    let mut guest = FakeGuest::new();
    guest.activate(false);
    for port in 0..1000 {
        guest.send(&from_guest(Op::Request, port), &[]);
        guest.send(&from_guest(Op::Request, port), &[]);
    }
    assert_eq!(guest.device.table.resets.len(), 256);
    guest.offer_all();
    let mut answers = Vec::new();
    loop {
        let packets = guest.receive(true);
        if packets.is_empty() {
            break;
        }
        answers.extend(packets.into_iter().map(|(header, _)| header.src_port));
    }
    assert_eq!(answers, (0..256).collect::<Vec<_>>(), "each pair of ports once");
}

/// 64 MiB through an echoing guest, so through every window many times.
#[test]
fn an_echo_of_64_mib_comes_back_unchanged() {
    const LEN: usize = 64 << 20;
    let (test_end, endpoint) = socket();
    let (mut guest, mut sockets, id) = connected(b"head", endpoint);
    let data = pattern(LEN);
    let expected = data.clone();
    let mut writer = test_end.try_clone().unwrap();
    let mut reader = test_end;
    let writing = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });

    let (mut head, mut waiting, mut closed) = (4, Vec::new(), false);
    let deadline = Instant::now() + Duration::from_secs(120);
    while guest.ended(id).is_none() {
        assert!(Instant::now() < deadline, "stuck");
        if guest.wait(Duration::from_millis(1)) {
            guest.device.event_ready();
        }
        let packets = guest.receive(true);
        sockets.handle(&mut guest, packets);
        let stream = sockets.streams.get_mut(&id.0).unwrap();
        // A process with a buffer of 100,000 bytes.
        let (bytes, update) = stream.read(100_000 - waiting.len());
        let skip = head.min(bytes.len());
        head -= skip;
        waiting.extend_from_slice(&bytes[skip..]);
        let finished = stream.received.is_empty() && stream.host_shutdown & SEND != 0;
        if let Some(update) = update {
            guest.send(&update, &[]);
        }
        let sent = sockets.send(&mut guest, id.0, &waiting);
        waiting.drain(..sent);
        if finished && waiting.is_empty() && !closed && guest.tx_slots() > 0 {
            closed = true;
            let close = sockets
                .streams
                .get_mut(&id.0)
                .unwrap()
                .packet(Op::Shutdown, BOTH, 0);
            guest.send(&close, &[]);
        }
        if let Some(stream) = guest.device.table.stream(id.0) {
            assert!(stream.held_len() <= BUF_ALLOC as usize);
        }
        let events = guest.handle.take_events();
        guest.events.extend(events);
    }
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    writing.join().unwrap();
    assert!(reading.join().unwrap() == expected, "bytes differ");
}

#[test]
fn end_of_input_is_a_half_close_and_the_guest_may_still_answer() {
    let (mut test_end, endpoint) = socket();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    test_end.write_all(b"question").unwrap();
    test_end.shutdown(std::net::Shutdown::Write).unwrap();
    sockets.run(&mut guest);
    let stream = &sockets.streams[&id.0];
    assert_eq!(
        (
            stream.received.iter().copied().collect::<Vec<_>>(),
            stream.host_shutdown
        ),
        (b"question".to_vec(), SEND)
    );

    sockets.send(&mut guest, id.0, b"answer");
    guest.run();
    let mut answer = [0; 6];
    test_end.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    let half_close = sockets
        .streams
        .get_mut(&id.0)
        .unwrap()
        .packet(Op::Shutdown, SEND, 0);
    guest.send(&half_close, &[]);
    sockets.run(&mut guest);
    assert_eq!(test_end.read(&mut answer).unwrap(), 0);
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    assert!(sockets.streams[&id.0].reset, "both directions have ended");
}

#[test]
fn the_guests_half_close_reaches_the_reader_while_input_goes_on() {
    let (mut test_end, endpoint) = socket();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    sockets.send(&mut guest, id.0, b"last words");
    let half_close = sockets
        .streams
        .get_mut(&id.0)
        .unwrap()
        .packet(Op::Shutdown, SEND, 0);
    guest.send(&half_close, &[]);
    guest.run();
    let mut text = String::new();
    test_end.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert_eq!(guest.ended(id), None);
    test_end.write_all(b"more").unwrap();
    sockets.run(&mut guest);
    assert_eq!(sockets.streams[&id.0].received, b"more");
    drop(test_end);
    sockets.run(&mut guest);
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
}

#[test]
fn a_guest_that_reads_no_more_gives_the_writer_epipe() {
    let (mut writer, endpoint) = input();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let close = sockets
        .streams
        .get_mut(&id.0)
        .unwrap()
        .packet(Op::Shutdown, BOTH, 0);
    guest.send(&close, &[]);
    sockets.run(&mut guest);
    assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    assert!(sockets.streams[&id.0].reset);
}

#[test]
fn a_reader_that_is_gone_is_told_to_the_guest() {
    let (reader, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    drop(reader);
    sockets.send(&mut guest, id.0, b"into the void");
    sockets.run(&mut guest);
    let events = guest.events.split_off(1);
    assert_eq!(
        events,
        vec![
            (id, StreamEvent::OutputBroken { errno: libc::EPIPE }),
            (id, StreamEvent::Closed)
        ]
    );
    assert!(sockets.streams[&id.0].reset);
}

#[test]
fn a_broken_output_leaves_the_input_going() {
    let (reader, out) = output();
    let (mut writer, source) = input();
    let endpoint = Endpoint {
        input: source.input,
        output: out.output,
    };
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    drop(reader);
    sockets.send(&mut guest, id.0, b"into the void");
    sockets.run(&mut guest);
    assert_eq!(sockets.streams[&id.0].host_shutdown, 1);
    assert_eq!(guest.ended(id), None);
    writer.write_all(b"still here").unwrap();
    sockets.run(&mut guest);
    assert_eq!(sockets.streams[&id.0].received, b"still here");
}

#[test]
fn a_slow_reader_stops_its_own_stream_only_and_nothing_is_lost_at_the_end() {
    let (mut slow, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let (mut other_end, endpoint) = socket();
    let other = guest.handle.connect(1, Vec::new(), endpoint).unwrap();
    sockets.run(&mut guest);

    let data = pattern(2 << 20);
    let mut sent = 0;
    loop {
        let now = sockets.send(&mut guest, id.0, &data[sent..]);
        sockets.run(&mut guest);
        sent += now;
        if now == 0 {
            break;
        }
    }
    // A window, of which the pipe took 64 KiB: less than the half at which the guest hears of it.
    assert_eq!(sent, BUF_ALLOC as usize);
    let held = guest.device.table.stream(id.0).unwrap().held_len();
    assert_eq!(held, BUF_ALLOC as usize - (64 << 10));
    assert!(
        !guest.wait(Duration::from_millis(20)),
        "a blocked output must not spin"
    );

    sockets.send(&mut guest, other.0, b"control goes on");
    let mut text = [0; 15];
    other_end.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"control goes on");

    let close = sockets
        .streams
        .get_mut(&id.0)
        .unwrap()
        .packet(Op::Shutdown, BOTH, 0);
    guest.send(&close, &[]);
    sockets.run(&mut guest);
    assert!(
        sockets.streams[&id.0].reset,
        "the guest need not wait for the host's reader"
    );
    assert_eq!(guest.ended(id), None, "bytes are still to be written");

    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        slow.read_to_end(&mut bytes).unwrap();
        bytes
    });
    while guest.ended(id).is_none() {
        guest.run();
    }
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    assert!(reading.join().unwrap() == data[..sent]);
}

#[test]
fn credit_comes_back_as_the_reader_reads() {
    let (mut slow, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let data = pattern((64 << 10) + BUF_ALLOC as usize);
    while sockets.streams[&id.0].credit() > 0 {
        let sent = (64 << 10) + BUF_ALLOC as usize - data.len();
        sockets.send(&mut guest, id.0, &data[sent..]);
        if guest.device.table.stream(id.0).unwrap().held_len() == BUF_ALLOC as usize {
            break;
        }
        sockets.run(&mut guest);
    }
    sockets.run(&mut guest);
    let before = sockets.streams[&id.0].credit();
    let mut bytes = vec![0; 200 << 10];
    let mut read = 0;
    while read < bytes.len() {
        read += slow.read(&mut bytes[read..]).unwrap();
        sockets.run(&mut guest);
    }
    assert!(
        sockets.streams[&id.0].credit() >= before + BUF_ALLOC / 2,
        "{before}"
    );
}

#[test]
fn an_input_waits_for_credit_without_spinning_and_without_being_read() {
    let (mut writer, endpoint) = socket();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let data = pattern(1 << 20);
    writer.set_nonblocking(true).unwrap();
    let mut offered = 0;
    // Until neither the guest's window nor the socket takes more.
    loop {
        match writer.write(&data[offered..]) {
            Ok(written) => offered += written,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        sockets.run(&mut guest);
        let full = sockets.streams[&id.0].received.len() == BUF_ALLOC as usize;
        if full
            && writer
                .write(&data[offered..])
                .map(|written| offered += written)
                .is_err()
        {
            break;
        }
    }
    assert!(
        !guest.wait(Duration::from_millis(20)),
        "an input that waits for credit must not spin"
    );
    let mut received = Vec::new();
    while received.len() < offered {
        let (bytes, update) = sockets.streams.get_mut(&id.0).unwrap().read(usize::MAX);
        received.extend(bytes);
        guest.send(&update.expect("progress"), &[]);
        sockets.run(&mut guest);
    }
    assert!(received == data[..offered]);
}

#[test]
fn without_receive_buffers_all_waits_and_then_comes_in_order() {
    let mut guest = FakeGuest::new();
    guest.activate(false);
    let (mut writer, endpoint) = input();
    let id = guest
        .handle
        .connect(GUEST_PORT, b"pre".to_vec(), endpoint)
        .unwrap();
    writer.write_all(b"bytes").unwrap();
    drop(writer);
    guest.run();
    assert!(
        !guest.wait(Duration::from_millis(20)),
        "waiting for buffers must not spin"
    );
    guest.offer_all();
    let mut sockets = GuestSockets::default();
    sockets.run(&mut guest);
    let stream = &sockets.streams[&id.0];
    assert_eq!(
        (
            stream.received.iter().copied().collect::<Vec<_>>(),
            stream.host_shutdown
        ),
        (b"prebytes".to_vec(), SEND)
    );
}

#[test]
fn a_batch_of_packets_costs_one_interrupt() {
    let (mut writer, endpoint) = input();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    guest.rx.interrupts();
    writer.write_all(&[7; 40_000]).unwrap();
    guest.device.event_ready();
    let packets = guest.receive(true);
    assert_eq!(packets.len(), 11, "40,000 bytes in buffers of 3,732");
    assert_eq!(guest.rx.interrupts(), 1);
    sockets.handle(&mut guest, packets);
    assert_eq!(sockets.streams[&id.0].received.len(), 40_000);
}

/// With event indices the driver kicks only for the entry that the device has named.
#[test]
fn the_receive_queue_is_not_kicked_as_long_as_there_are_buffers() {
    use crate::devices::virtio::test_driver::TestDriver;
    let mut guest = FakeGuest::new();
    guest.activate_with(TestDriver::with_event_idx, true);
    let (mut writer, endpoint) = input();
    guest
        .handle
        .connect(GUEST_PORT, b"pre".to_vec(), endpoint)
        .unwrap();
    let mut sockets = GuestSockets::default();
    for _ in 0..20 {
        writer.write_all(b"a little").unwrap();
        sockets.run(&mut guest);
    }
    assert_eq!(
        guest.rx.avail_event(),
        0,
        "the kick for the first buffer, and no other, was asked for"
    );

    // 240,000 bytes into 64 buffers of 3,732, none of which is given back.
    for _ in 0..4 {
        writer.write_all(&[1; 60_000]).unwrap();
        guest.run();
    }
    assert_ne!(guest.rx.avail_event(), 0, "out of buffers: asked for a kick");
}

#[test]
fn a_flood_on_one_stream_does_not_hold_up_another() {
    let mut flood = tempfile::tempfile().unwrap();
    flood.write_all(&pattern(1 << 20)).unwrap();
    std::io::Seek::rewind(&mut flood).unwrap();
    let endpoint = Endpoint {
        input: Some(flood.into()),
        output: None,
    };
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let (mut writer, endpoint) = input();
    let other = guest.handle.connect(1, Vec::new(), endpoint).unwrap();
    sockets.run(&mut guest);
    // The guest frees its window just as the other stream has something.
    let (_, update) = sockets.streams.get_mut(&id.0).unwrap().read(usize::MAX);
    writer.write_all(b"x").unwrap();
    guest.queue(&update.unwrap(), &[]);
    guest.device.event_ready();
    guest.kick_tx();
    let packets = guest.receive(false);
    assert!(packets.len() > 20, "the flood goes on");
    assert!(
        packets
            .iter()
            .take(3)
            .any(|(header, _)| header.src_port == other.0)
    );
}

#[test]
fn sixteen_streams_at_once_keep_their_bytes_apart() {
    let mut guest = FakeGuest::new();
    guest.activate(true);
    let mut sockets = GuestSockets::default();
    let mut ends = Vec::new();
    for i in 0..16 {
        let (test_end, endpoint) = socket();
        let id = guest.handle.connect(GUEST_PORT, Vec::new(), endpoint).unwrap();
        let data: Vec<u8> = pattern(200_000 + 1000 * i)
            .into_iter()
            .map(|byte| byte ^ u8::try_from(i).unwrap())
            .collect();
        let (mut writer, mut reader, expected) = (test_end.try_clone().unwrap(), test_end, data.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes == expected
        });
        ends.push((id, writing, reading));
    }
    let (mut waiting, mut closed) = (vec![Vec::new(); 16], [false; 16]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ends.iter().any(|(id, ..)| guest.ended(*id).is_none()) {
        assert!(Instant::now() < deadline, "stuck");
        if guest.wait(Duration::from_millis(1)) {
            guest.device.event_ready();
        }
        let packets = guest.receive(true);
        sockets.handle(&mut guest, packets);
        for (i, (id, ..)) in ends.iter().enumerate() {
            let Some(stream) = sockets.streams.get_mut(&id.0) else {
                continue;
            };
            let (bytes, update) = stream.read(10_000 * (i + 1));
            let finished = stream.received.is_empty() && stream.host_shutdown & SEND != 0;
            waiting[i].extend(bytes);
            if let Some(update) = update.filter(|_| !closed[i]) {
                guest.send(&update, &[]);
            }
            let sent = sockets.send(&mut guest, id.0, &waiting[i]);
            waiting[i].drain(..sent);
            if finished && waiting[i].is_empty() && !closed[i] && guest.tx_slots() > 0 {
                closed[i] = true;
                let close = sockets
                    .streams
                    .get_mut(&id.0)
                    .unwrap()
                    .packet(Op::Shutdown, BOTH, 0);
                guest.send(&close, &[]);
            }
        }
        let events = guest.handle.take_events();
        guest.events.extend(events);
    }
    for (id, writing, reading) in ends {
        writing.join().unwrap();
        assert!(reading.join().unwrap(), "{id:?}");
        assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    }
}

#[test]
fn regular_files_are_both_input_and_output() {
    let data = pattern(300_000);
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&data).unwrap();
    std::io::Seek::rewind(&mut source).unwrap();
    let target = tempfile::NamedTempFile::new().unwrap();
    let endpoint = Endpoint {
        input: Some(source.into()),
        output: Some(target.reopen().unwrap().into()),
    };
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let mut received = Vec::new();
    while received.len() < data.len() {
        sockets.run(&mut guest);
        let (bytes, update) = sockets.streams.get_mut(&id.0).unwrap().read(usize::MAX);
        received.extend_from_slice(&bytes);
        if let Some(update) = update {
            guest.send(&update, &[]);
        }
        let mut left = &bytes[..];
        while !left.is_empty() {
            left = &left[sockets.send(&mut guest, id.0, left)..];
            sockets.run(&mut guest);
        }
    }
    let close = sockets
        .streams
        .get_mut(&id.0)
        .unwrap()
        .packet(Op::Shutdown, BOTH, 0);
    guest.send(&close, &[]);
    sockets.run(&mut guest);
    assert_eq!(guest.ended(id), Some(StreamEvent::Closed));
    assert!(received == data && std::fs::read(target.path()).unwrap() == data);
}

#[test]
fn a_reset_by_the_driver_ends_all_streams_after_their_last_bytes() {
    let (mut reader, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let data = pattern(200_000);
    sockets.send(&mut guest, id.0, &data);
    guest.device.reset();
    guest.run();
    assert_eq!(
        guest.ended(id),
        None,
        "more than the pipe holds is still to be written"
    );
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    while guest.ended(id).is_none() {
        guest.run();
    }
    assert_eq!(guest.ended(id), Some(StreamEvent::DeviceReset));
    assert!(reading.join().unwrap() == data);

    guest.activate(true);
    let (_reader, endpoint) = output();
    let again = guest.handle.connect(GUEST_PORT, Vec::new(), endpoint).unwrap();
    GuestSockets::default().run(&mut guest);
    assert_eq!(guest.events.last(), Some(&(again, StreamEvent::Opened)));
}

#[test]
fn what_a_dead_guest_has_left_in_its_queue_is_written_out() {
    let (mut reader, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let header = sockets.streams.get_mut(&id.0).unwrap().packet(Op::Rw, 0, 5);
    guest.queue(&header, b"panic");
    guest.handle.guest_gone();
    guest.run();
    assert_eq!(guest.ended(id), Some(StreamEvent::DeviceReset));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "panic");
}

#[test]
fn a_packet_that_promises_more_than_it_holds_breaks_its_stream() {
    let (_reader, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    let header = sockets.streams.get_mut(&id.0).unwrap().packet(Op::Rw, 0, 6);
    guest.send(&header, b"short");
    sockets.run(&mut guest);
    assert_eq!(guest.ended(id), Some(StreamEvent::Reset));
    assert!(sockets.streams[&id.0].reset);
}

#[test]
fn buffers_too_small_for_a_header_go_back_empty() {
    use crate::devices::virtio::test_driver::{RawDescriptor, WRITE};
    let mut guest = FakeGuest::new();
    guest.activate(false);
    guest.rx.set_descriptor(
        0,
        RawDescriptor {
            addr: 0x10_0000,
            len: 43,
            flags: WRITE,
            next: 0,
        },
    );
    guest.rx.offer_head(0);
    guest.send(&from_guest(Op::Request, 9), &[]);
    assert_eq!(guest.rx.used(), vec![(0, 0)]);
    assert_eq!(guest.device.table.resets.len(), 1, "still owed");
}

#[test]
fn a_snapshot_leaves_no_receive_buffer_in_the_devices_hands() {
    let (mut writer, endpoint) = input();
    let (mut guest, _sockets, _id) = connected(b"", endpoint);
    writer.write_all(b"x").unwrap();
    guest.run();
    guest.receive(false);
    // One buffer was taken for the read that found nothing more.
    guest.device.state();
    assert_eq!(
        guest
            .rx
            .used()
            .iter()
            .map(|(_, written)| *written)
            .collect::<Vec<_>>(),
        vec![0]
    );
}

#[test]
fn the_state_goes_through_serde_and_back() {
    let (mut slow, endpoint) = output();
    let (mut guest, mut sockets, id) = connected(b"", endpoint);
    sockets.send(&mut guest, id.0, &pattern(200_000));
    guest.send(&from_guest(Op::Request, 9), &[]);
    let state = postcard::to_allocvec(guest.device.state()).unwrap();
    let mut back: Table = postcard::from_bytes(&state).unwrap();
    let stream = guest.device.table.stream(id.0).unwrap();
    let restored = back.stream(id.0).unwrap();
    assert_eq!(restored.connection, stream.connection);
    assert_eq!(restored.held_len(), 200_000 - (64 << 10));
    assert!(!restored.end.has_output(), "descriptors are not kept");
    assert_eq!(postcard::to_allocvec(&back).unwrap(), state);
    assert_eq!(slow.read(&mut [0; 1]).unwrap(), 1);
}

/// What the property test does in one step.
#[derive(Debug, Clone)]
enum Step {
    Packet {
        port: u32,
        from: u32,
        op: u16,
        flags: u32,
        len: u32,
        real: u16,
        credit: [u32; 2],
        kind: u16,
    },
    Connect(bool, bool),
    Close(u32),
    Write(u16),
    Read(u16),
    HangUp(u8),
    Kick(u8),
    Refill,
    Reset,
    Gone,
}

fn packet_step() -> impl Strategy<Value = Step> {
    // Mostly ports of streams that exist, so that more than resets is seen.
    let port = prop_oneof![9 => 1024u32..1030, 1 => any::<u32>()];
    let from = prop_oneof![9 => Just(GUEST_PORT), 1 => any::<u32>()];
    let op = prop_oneof![4 => Just(2u16), 9 => Just(5u16), 9 => 0u16..9, 1 => any::<u16>()];
    let len = prop_oneof![5 => 0u32..70_000, 1 => any::<u32>()];
    let number = prop_oneof![3 => Just(1u32 << 18), 2 => 0u32..100_000, 1 => any::<u32>()];
    let credit = [number.clone(), number];
    let kind = prop_oneof![20 => Just(1u16), 1 => any::<u16>()];
    (port, from, op, 0u32..5, len, 0u16..60_000, credit, kind).prop_map(
        |(port, from, op, flags, len, real, credit, kind)| Step::Packet {
            port,
            from,
            op,
            flags,
            // Half of them tell the truth.
            len: if len % 2 == 0 { real.into() } else { len },
            real,
            credit,
            kind,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => packet_step(),
        3 => any::<[bool; 2]>().prop_map(|[input, output]| Step::Connect(input, output)),
        1 => (1024u32..1030).prop_map(Step::Close),
        4 => any::<u16>().prop_map(Step::Write),
        3 => any::<u16>().prop_map(Step::Read),
        1 => any::<u8>().prop_map(Step::HangUp),
        4 => (0u8..4).prop_map(Step::Kick),
        4 => Just(Step::Refill),
        1 => Just(Step::Reset),
        1 => Just(Step::Gone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever a guest sends and a host does: no panic, no more memory than the windows, every stream
    /// ends exactly once.
    #[test]
    fn nothing_a_guest_sends_breaks_the_device(steps in proptest::collection::vec(step(), 1..120)) {
        let mut guest = FakeGuest::new();
        guest.activate(true);
        let mut ends: Vec<UnixStream> = Vec::new();
        let mut ids = Vec::new();
        for step in steps {
            match step {
                Step::Packet { port, from, op, flags, len, real, credit, kind } => {
                    let header = Header {
                        src_cid: GUEST_CID.into(), dst_cid: 2, src_port: from, dst_port: port, len,
                        socket_type: kind, op, flags, buf_alloc: credit[0], fwd_cnt: credit[1],
                    };
                    guest.send(&header, &vec![0x5a; usize::from(real)]);
                }
                Step::Connect(input, output) => {
                    let (ours, mut endpoint) = socket();
                    ours.set_nonblocking(true).unwrap();
                    if !input { endpoint.input = None; }
                    if !output { endpoint.output = None; }
                    ends.push(ours);
                    ids.push(guest.handle.connect(GUEST_PORT, b"preamble".to_vec(), endpoint).unwrap());
                }
                Step::Close(port) => guest.handle.close(StreamId(port)),
                Step::Write(len) => if let Some(end) = ends.first_mut() {
                    let _ = end.write(&vec![1; usize::from(len)]);
                },
                Step::Read(len) => for end in &mut ends {
                    let _ = end.read(&mut vec![0; usize::from(len)]);
                },
                Step::HangUp(index) => if !ends.is_empty() {
                    ends.remove(usize::from(index) % ends.len());
                },
                Step::Kick(index) => guest.device.queue_kicked(index.into()),
                Step::Refill => { guest.receive(true); guest.device.queue_kicked(RX); }
                Step::Reset => {
                    guest.device.reset();
                    guest.activate(true);
                }
                Step::Gone => guest.handle.guest_gone(),
            }
            if guest.wait(Duration::ZERO) {
                guest.device.event_ready();
            }
            for id in &ids {
                if let Some(stream) = guest.device.table.stream(id.0) {
                    prop_assert!(stream.held_len() <= BUF_ALLOC as usize);
                    prop_assert!(stream.held_len() <= stream.connection.held() as usize);
                }
            }
            prop_assert!(guest.device.table.resets.len() <= 256 + ids.len());
            prop_assert!(guest.device.table.turns.len() <= ids.len());
        }
        // In the end all come to rest.
        guest.handle.guest_gone();
        ids.iter().for_each(|id| guest.handle.close(*id));
        drop(ends);
        guest.run();
        for id in ids {
            let ends = guest.events.iter().filter(|(of, event)| *of == id && event.is_final()).count();
            prop_assert_eq!(ends, 1);
        }
    }
}
