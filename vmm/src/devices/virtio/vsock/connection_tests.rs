use proptest::prelude::*;

use super::super::credit::BUF_ALLOC;
use super::*;

const GUEST_CID: u32 = 3;
const BOTH: u32 = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND;

fn packet(op: Op) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: VIRTIO_VSOCK_HOST_CID,
        src_port: 2,
        dst_port: 1024,
        socket_type: VIRTIO_VSOCK_TYPE_STREAM,
        op: op.wire(),
        buf_alloc: 1000,
        ..Header::default()
    }
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..packet(Op::Shutdown)
    }
}

fn rw(len: u32) -> Header {
    Header {
        len,
        ..packet(Op::Rw)
    }
}

fn sent(connection: &mut Connection) -> Option<(Op, u32)> {
    connection
        .next_control(GUEST_CID)
        .map(|header| (Op::from_wire(header.op).unwrap(), header.flags))
}

/// A connection that the guest has accepted with a buffer of 1,000 bytes.
fn open(preamble: &[u8], has_input: bool) -> Connection {
    let mut connection = Connection::new(1024, 2, preamble.to_vec(), has_input);
    assert_eq!(sent(&mut connection), Some((Op::Request, 0)));
    assert_eq!(connection.receive(&packet(Op::Response)), Reaction::Opened);
    connection
}

#[test]
fn a_request_is_sent_once_and_nothing_before_the_answer() {
    let mut connection = Connection::new(1024, 2, b"hello".to_vec(), true);
    assert_eq!(connection.sendable(), 0);
    let header = connection.next_control(GUEST_CID).unwrap();
    let expected = Header {
        src_cid: 2,
        dst_cid: 3,
        src_port: 1024,
        dst_port: 2,
        socket_type: 1,
        op: 1,
        buf_alloc: BUF_ALLOC,
        ..Header::default()
    };
    assert_eq!(header, expected);
    assert!(!connection.control_due());
    assert_eq!(connection.sendable(), 0);
    connection.receive(&packet(Op::Response));
    assert_eq!(connection.sendable(), 1000);
}

#[test]
fn a_reset_before_the_answer_is_a_refusal() {
    let mut connection = Connection::new(1024, 2, Vec::new(), true);
    connection.next_control(GUEST_CID);
    assert_eq!(
        connection.receive(&packet(Op::Rst)),
        Reaction::End {
            end: End::Refused,
            reset: false
        }
    );
}

#[test]
fn payload_before_the_answer_is_a_mistake() {
    let mut connection = Connection::new(1024, 2, Vec::new(), true);
    connection.next_control(GUEST_CID);
    assert_eq!(
        connection.receive(&rw(1)),
        Reaction::End {
            end: End::Reset,
            reset: true
        }
    );
}

#[test]
fn the_preamble_goes_first_and_only_then_the_input() {
    let mut connection = open(b"header", true);
    assert!(!connection.wants_input());
    assert_eq!(connection.next_data(4, GUEST_CID).len, 4);
    assert_eq!(connection.preamble_left(), b"er");
    connection.next_data(2, GUEST_CID);
    assert!(connection.wants_input());
    assert_eq!(connection.sendable(), 994);
}

#[test]
fn the_half_close_waits_for_the_last_byte() {
    let mut connection = open(b"header", true);
    connection.end_input();
    assert_eq!(sent(&mut connection), None);
    connection.next_data(6, GUEST_CID);
    assert_eq!(
        sent(&mut connection),
        Some((Op::Shutdown, VIRTIO_VSOCK_SHUTDOWN_F_SEND))
    );
    assert_eq!(sent(&mut connection), None);
    assert!(!connection.is_over(), "the guest may still send");
    assert_eq!(connection.receive(&rw(10)), Reaction::Deliver);
    assert_eq!(
        connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND)),
        Reaction::Shutdown
    );
    assert!(connection.is_over());
}

#[test]
fn a_stream_without_input_ends_with_the_guests_half_close() {
    let mut connection = open(b"x", false);
    connection.next_data(1, GUEST_CID);
    assert_eq!(sent(&mut connection), None, "its own direction is left open");
    assert!(!connection.is_over());
    connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND));
    assert!(connection.is_over());
}

#[test]
fn a_close_of_the_guest_is_answered_by_a_reset() {
    let mut connection = open(b"", true);
    assert_eq!(
        connection.receive(&shutdown(BOTH)),
        Reaction::End {
            end: End::Closed,
            reset: true
        }
    );
}

#[test]
fn shutdown_flags_of_the_guest_add_up() {
    let mut connection = open(b"", true);
    assert_eq!(
        connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE)),
        Reaction::Shutdown
    );
    assert!(!connection.guest_reads());
    assert_eq!(connection.sendable(), 0);
    assert_eq!(
        connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND)),
        Reaction::End {
            end: End::Closed,
            reset: true
        }
    );
}

#[test]
fn a_guest_that_reads_no_more_is_not_told_of_the_end_of_the_input() {
    let mut connection = open(b"", true);
    connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE));
    connection.end_input();
    assert_eq!(sent(&mut connection), None);
}

#[test]
fn a_broken_output_is_told_with_what_was_told_before() {
    let mut connection = open(b"", true);
    connection.break_output();
    assert_eq!(
        sent(&mut connection),
        Some((Op::Shutdown, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE))
    );
    assert_eq!(
        connection.receive(&rw(5)),
        Reaction::Deliver,
        "it may have been under way"
    );
    connection.forwarded(5);
    connection.end_input();
    assert!(connection.is_over(), "nothing is left to say in either direction");

    let mut connection = open(b"", false);
    connection.break_output();
    assert!(connection.is_over(), "and at once when the host sends nothing");
}

#[test]
fn payload_after_the_guests_half_close_or_beyond_its_credit_is_a_mistake() {
    const MISTAKE: Reaction = Reaction::End {
        end: End::Reset,
        reset: true,
    };
    let mut connection = open(b"", true);
    connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND));
    assert_eq!(connection.receive(&rw(1)), MISTAKE);
    let mut connection = open(b"", true);
    assert_eq!(connection.receive(&rw(BUF_ALLOC)), Reaction::Deliver);
    assert_eq!(connection.receive(&rw(1)), MISTAKE);
}

#[test]
fn credit_is_told_when_asked_for_and_when_half_the_buffer_is_free_again() {
    let mut connection = open(b"", true);
    connection.receive(&packet(Op::CreditRequest));
    let update = connection.next_control(GUEST_CID).unwrap();
    assert_eq!((update.op, update.fwd_cnt), (Op::CreditUpdate.wire(), 0));
    assert!(!connection.control_due());
    connection.receive(&rw(BUF_ALLOC / 2));
    connection.forwarded(BUF_ALLOC / 2 - 1);
    assert!(!connection.control_due());
    connection.forwarded(1);
    assert_eq!(connection.next_control(GUEST_CID).unwrap().fwd_cnt, BUF_ALLOC / 2);
    assert!(!connection.control_due());
}

#[test]
fn a_reset_is_an_end_or_a_breach_by_what_the_guest_said_before() {
    let mut connection = open(b"", true);
    assert_eq!(
        connection.receive(&packet(Op::Rst)),
        Reaction::End {
            end: End::Reset,
            reset: false
        }
    );
    let mut connection = open(b"", true);
    connection.receive(&shutdown(VIRTIO_VSOCK_SHUTDOWN_F_SEND));
    assert_eq!(
        connection.receive(&packet(Op::Rst)),
        Reaction::End {
            end: End::Closed,
            reset: false
        }
    );
}

#[test]
fn operations_that_make_no_sense_break_the_connection() {
    for op in [1, 2, 0, 8, u16::MAX] {
        let mut connection = open(b"", true);
        let header = Header {
            op,
            ..packet(Op::Rst)
        };
        assert_eq!(
            connection.receive(&header),
            Reaction::End {
                end: End::Reset,
                reset: true
            },
            "{op}"
        );
    }
}

proptest! {
    /// Any packets, with the device doing its part in between: payload stays within the credit both
    /// ways, and a connection that is over or broken stops.
    #[test]
    fn no_packets_lead_out_of_the_windows(
        preamble in proptest::collection::vec(any::<u8>(), 0..50),
        has_input in any::<bool>(),
        steps in proptest::collection::vec((0u16..9, 0u32..5, any::<[u32; 3]>(), 0u8..6), 0..100),
    ) {
        let mut connection = Connection::new(1024, 2, preamble.clone(), has_input);
        let mut header_before = Vec::new();
        for (op, flags, [len, buf_alloc, fwd_cnt], ours) in steps {
            let header = Header { op, flags, len: len % 300_000, buf_alloc, fwd_cnt, ..packet(Op::Rst) };
            if connection.phase() != Phase::Queued
                && let Reaction::End { .. } = connection.receive(&header)
            {
                break;
            }
            match ours {
                0 => connection.end_input(),
                1 if op == 5 => connection.break_output(),
                2 => connection.forwarded(connection.held().min(len)),
                3 => { connection.next_control(GUEST_CID); }
                _ => {
                    let limit = connection.sendable();
                    let len = if connection.preamble_left().is_empty() { len } else {
                        len.min(u32::try_from(connection.preamble_left().len()).unwrap())
                    }.min(limit);
                    if len > 0 && (connection.wants_input() || !connection.preamble_left().is_empty()) {
                        header_before.push(connection.next_data(len, GUEST_CID));
                        prop_assert_eq!(connection.sendable(), limit - len);
                    }
                }
            }
            prop_assert!(connection.held() <= BUF_ALLOC);
            prop_assert!(connection.phase() == Phase::Open || header_before.is_empty());
            if connection.is_over() {
                break;
            }
        }
    }
}
