//! Flow control of one connection (VIRTIO 1.2, 5.10.6.3 "Buffer Space Management").
//!
//! Each side has a receive buffer for each connection and tells its size (`buf_alloc`) and how many bytes
//! have left it so far (`fwd_cnt`) in every packet. A sender keeps `sent - fwd_cnt <= buf_alloc`. All
//! counters run modulo 2^32.

use serde::{Deserialize, Serialize};

/// The device's receive buffer for one connection: the most bytes that it holds when the host's reader is
/// slow, and so the bound of a connection's memory.
///
/// 256 KiB is four of the largest packets (64 KiB): one being written out, one for the credit update's
/// way back to the guest, two for the guest's next writes. It is also Linux's own default
/// (`VSOCK_DEFAULT_BUFFER_SIZE`), and four times a pipe's capacity, so that a reader that empties its pipe
/// at one go finds the next pipeful here without waiting for the guest.
pub const BUF_ALLOC: u32 = 256 << 10;

/// Tell the guest about freed space when this much was freed since it was last told.
///
/// Half the buffer: the guest can then never be stuck, as it only stops when it believes the buffer full,
/// and then at least half of it is news once the buffer is empty. A smaller step would cost more packets
/// and interrupts, a larger one would let the guest run dry before the update arrives.
const UPDATE_STEP: u32 = BUF_ALLOC / 2;

/// The guest has sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes sent with credit for {credit}")]
pub struct Overrun {
    /// Bytes of the packet.
    pub len: u32,
    /// Bytes that were allowed.
    pub credit: u32,
}

/// The counters of one connection, both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// What the guest said last; any numbers, since the guest chooses them.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest.
    tx_cnt: u32,
    /// Bytes received from the guest.
    rx_cnt: u32,
    /// Bytes of those that have left the device.
    fwd_cnt: u32,
    /// The `fwd_cnt` that the guest knows of.
    told_fwd_cnt: u32,
}

impl Credit {
    /// Takes over the credit fields of a packet from the guest.
    pub fn peer_says(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = fwd_cnt;
    }

    /// Bytes that may be sent now. A guest that claims to have taken more than was sent only stops its
    /// own stream: the difference wraps to a large number of bytes under way.
    pub fn sendable(&self) -> u32 {
        let under_way = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(under_way)
    }

    /// `len` bytes were sent, at most [`Credit::sendable`].
    pub fn sent(&mut self, len: u32) {
        debug_assert!(len <= self.sendable());
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }

    /// `len` bytes arrive.
    ///
    /// # Errors
    /// When the guest had no credit for them. Nothing is counted then.
    pub fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        // What the guest may know of: an honest one stays below this, since the news of `told_fwd_cnt`
        // may not have reached it yet.
        let credit = BUF_ALLOC - self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        if len > credit {
            return Err(Overrun { len, credit });
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// `len` of the bytes that were received have left the device, or were discarded.
    pub fn forwarded(&mut self, len: u32) {
        debug_assert!(len <= self.held());
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// Bytes received that have not left the device; at most [`BUF_ALLOC`].
    pub fn held(&self) -> u32 {
        self.rx_cnt.wrapping_sub(self.fwd_cnt)
    }

    /// Whether the guest should be told about freed space.
    pub fn update_due(&self) -> bool {
        self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= UPDATE_STEP
    }

    /// The fields `(buf_alloc, fwd_cnt)` of a packet that is being sent.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told_fwd_cnt = self.fwd_cnt;
        (BUF_ALLOC, self.fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sending_stops_at_the_guests_buffer_and_goes_on_as_it_drains() {
        let mut credit = Credit::default();
        assert_eq!(credit.sendable(), 0, "before the guest has said anything");
        credit.peer_says(1000, 0);
        credit.sent(700);
        assert_eq!(credit.sendable(), 300);
        credit.peer_says(1000, 600);
        assert_eq!(credit.sendable(), 900);
        credit.peer_says(50, 600);
        assert_eq!(
            credit.sendable(),
            0,
            "a buffer made smaller than what is under way"
        );
    }

    #[test]
    fn counters_go_on_beyond_4_gib() {
        let mut credit = Credit {
            tx_cnt: u32::MAX - 9,
            peer_fwd_cnt: u32::MAX - 9,
            ..Credit::default()
        };
        credit.peer_says(100, u32::MAX - 9);
        credit.sent(100);
        assert_eq!(credit.sendable(), 0);
        credit.peer_says(100, 90);
        assert_eq!(credit.sendable(), 100);
    }

    #[test]
    fn a_guest_that_claims_bytes_never_sent_gets_nothing() {
        let mut credit = Credit::default();
        credit.peer_says(BUF_ALLOC, 1);
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn an_overrun_is_refused_and_a_full_window_taken() {
        let mut credit = Credit::default();
        assert_eq!(
            credit.receive(BUF_ALLOC + 1),
            Err(Overrun {
                len: BUF_ALLOC + 1,
                credit: BUF_ALLOC
            })
        );
        credit.receive(BUF_ALLOC).unwrap();
        assert!(credit.receive(1).is_err());
        assert!(!credit.update_due(), "nothing has left yet");
        credit.forwarded(BUF_ALLOC / 2);
        assert!(credit.update_due());
        assert!(credit.receive(1).is_err(), "the guest has not been told");
        assert_eq!(credit.tell(), (BUF_ALLOC, BUF_ALLOC / 2));
        assert!(!credit.update_due());
        credit.receive(BUF_ALLOC / 2).unwrap();
    }

    proptest! {
        #[test]
        fn no_sequence_exceeds_either_window(
            start in any::<u32>(),
            steps in proptest::collection::vec((0u8..5, any::<u32>(), any::<u32>()), 0..200),
        ) {
            // As if 4 GiB had gone by, so that all counters wrap somewhere.
            let mut credit = Credit {
                rx_cnt: start, fwd_cnt: start, told_fwd_cnt: start, tx_cnt: start, peer_fwd_cnt: start,
                peer_buf_alloc: 0,
            };
            for (what, a, b) in steps {
                match what {
                    0 => credit.peer_says(a, b),
                    1 => credit.sent(credit.sendable().min(a)),
                    2 => { let _ = credit.receive(a % (2 * BUF_ALLOC)); }
                    3 => credit.forwarded(credit.held().min(a)),
                    _ => { credit.tell(); }
                }
                prop_assert!(credit.held() <= BUF_ALLOC);
                prop_assert!(credit.sendable() <= credit.peer_buf_alloc);
                // Never stuck: a guest that believes the buffer full hears of it once it is empty.
                let believed = credit.rx_cnt.wrapping_sub(credit.told_fwd_cnt);
                prop_assert!(believed < BUF_ALLOC || credit.held() > 0 || credit.update_due());
            }
        }
    }
}
