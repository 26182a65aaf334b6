//! Packet headers (VIRTIO 1.2, 5.10.6 "Device Operation", `struct virtio_vsock_hdr`).
//!
//! A header is copied from the chain once and parsed here; what the guest writes to its buffer afterwards
//! is never seen. The `virtio-vsock` crate has a header of its own, but it parses from descriptor chains
//! and so passes by the checked gateway of [`super::super::chain`].

use serde::{Deserialize, Serialize};

/// Bytes of a header on the wire.
pub const HEADER_LEN: usize = 44;

/// Most payload bytes of one packet: what Linux sends at the most (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Context id of the host (5.10.4).
pub const VIRTIO_VSOCK_HOST_CID: u64 = 2;

/// Socket type: byte stream, the only one that this device has.
pub const VIRTIO_VSOCK_TYPE_STREAM: u16 = 1;

/// Flag of [`Op::Shutdown`]: the sender receives no more.
pub const VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: u32 = 1 << 0;
/// Flag of [`Op::Shutdown`]: the sender sends no more.
pub const VIRTIO_VSOCK_SHUTDOWN_F_SEND: u32 = 1 << 1;

/// What a packet asks for (`enum virtio_vsock_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `VIRTIO_VSOCK_OP_REQUEST`: open a connection.
    Request,
    /// `VIRTIO_VSOCK_OP_RESPONSE`: it is open.
    Response,
    /// `VIRTIO_VSOCK_OP_RST`: there is no connection, or no longer one. Never answered.
    Rst,
    /// `VIRTIO_VSOCK_OP_SHUTDOWN`: one direction or both have ended.
    Shutdown,
    /// `VIRTIO_VSOCK_OP_RW`: payload.
    Rw,
    /// `VIRTIO_VSOCK_OP_CREDIT_UPDATE`: look at the credit fields, which every packet has.
    CreditUpdate,
    /// `VIRTIO_VSOCK_OP_CREDIT_REQUEST`: send a credit update.
    CreditRequest,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 7] = [
        Op::Request,
        Op::Response,
        Op::Rst,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ];

    /// Its number.
    pub fn wire(self) -> u16 {
        match self {
            Op::Request => 1,
            Op::Response => 2,
            Op::Rst => 3,
            Op::Shutdown => 4,
            Op::Rw => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
        }
    }

    /// The operation with this number; `None` for numbers that the specification doesn't have.
    pub fn from_wire(number: u16) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.wire() == number)
    }
}

/// A packet header in the host's byte order. Fields are as the peer sent them, so hostile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Payload bytes that follow.
    pub len: u32,
    /// `VIRTIO_VSOCK_TYPE_*`.
    pub socket_type: u16,
    /// Number of an [`Op`].
    pub op: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer since the start, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Parses the little-endian wire form. Any 44 bytes are a header; what they mean is judged later.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let mut fields = Fields { bytes };
        Header {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            socket_type: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// The wire form.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer to a packet that belongs to no connection: a reset that names the same pair of ports
    /// the other way round, and the same socket type.
    pub fn reset_for(unknown: &Header) -> Header {
        Header {
            src_cid: unknown.dst_cid,
            dst_cid: unknown.src_cid,
            src_port: unknown.dst_port,
            dst_port: unknown.src_port,
            socket_type: unknown.socket_type,
            op: Op::Rst.wire(),
            ..Header::default()
        }
    }
}

/// Takes fields off the front of a header.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .bytes
            .split_first_chunk()
            .expect("the fields taken add up to the header's length");
        self.bytes = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_form_is_that_of_the_specification() {
        let header = Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 0x0102_0304,
            dst_port: 2,
            len: 5,
            socket_type: VIRTIO_VSOCK_TYPE_STREAM,
            op: Op::Rw.wire(),
            flags: 6,
            buf_alloc: 7,
            fwd_cnt: 8,
        };
        let wire = [
            2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 2, 0, 0, 0, 5, 0, 0, 0, 1, 0, 5, 0,
            6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0,
        ];
        assert_eq!(header.to_bytes(), wire);
    }

    #[test]
    fn every_number_leads_back_to_its_operation() {
        for op in Op::ALL {
            assert_eq!(Op::from_wire(op.wire()), Some(op));
        }
        assert_eq!(Op::from_wire(0), None);
        assert_eq!(Op::from_wire(8), None);
    }

    proptest! {
        #[test]
        fn any_bytes_make_the_round_trip(bytes in proptest::array::uniform32(any::<u8>()), rest in proptest::array::uniform12(any::<u8>())) {
            let mut wire = [0; HEADER_LEN];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::from_bytes(&wire).to_bytes(), wire);
        }
    }
}
