//! Virtio socket device (VIRTIO 1.2, 5.10 "Socket Device"), ended in the VMM: streams between
//! descriptors of the host and ports of the guest. It is for the control stream and the standard streams
//! of processes; it is no way for a guest to reach anything on the host: every stream that the guest
//! tries to open is reset.
//!
//! # Primer of the protocol
//!
//! All streams share one pair of queues: the *receive* queue holds empty buffers of the guest, which the
//! device fills, the *transmit* queue holds packets of the guest. A packet is a header of 44 bytes (two
//! context ids, two ports, length, operation, flags, credit) and, for `RW` only, payload.
//!
//! A stream is named by its two ports. Its life, with the host as the opener:
//!
//! ```text
//!   host                         guest
//!    │ REQUEST ───────────────────► │   somebody listens on the port ...
//!    │ ◄─────────────────── RESPONSE│   ... or nobody: RST
//!    │ RW (preamble) ─────────────► │
//!    │ RW (input) ────────────────► │   at most as many bytes as the guest has credit for
//!    │ ◄─────────────────────── RW  │   likewise
//!    │ CREDIT_UPDATE ─────────────► │   the host's reader has taken bytes: go on
//!    │ SHUTDOWN (send) ───────────► │   end of the host's input: end of file in the guest
//!    │ ◄────────── SHUTDOWN (send)  │   end of the guest's output: the host's descriptor is closed
//!    │ RST ───────────────────────► │   both directions have ended
//! ```
//!
//! - **Credit.** Every packet tells the sender's buffer size and how much has left it since the start; the
//!   other side keeps the bytes under way below that (`credit`). So the transmit queue never waits for
//!   a slow reader: what it cannot take at once is held, `credit::BUF_ALLOC` bytes a stream at the most.
//!   And the receive queue never holds what the guest cannot take.
//! - **Ends.** `SHUTDOWN` has a flag for each direction; flags add up. A guest that has set both (Linux's
//!   `close` does) is answered by `RST`, and so is one where both sides have ended what they send.
//!   `RST` is never answered. Linux lets its reader have all bytes that came before it.
//! - **Broken output.** When the host's reader is gone, the guest is told `SHUTDOWN (receive)` or, when
//!   the host has nothing more to send either, `RST`: its writer gets `EPIPE`.
//! - **No input.** A stream without input sends its preamble and leaves its direction open: nothing waits
//!   for that end, and a reader in the guest is not woken for it. It ends with the guest's own end.
//! - **Receive buffers** may be out. Then all waits, in `table::Table`: a bounded list of resets owed,
//!   and in each stream what it still has to say. Nothing of the host is read before there is room for it.
//!
//! # Where to read
//!
//! `packet` the header, `credit` flow control, `connection` the state machine, `endpoint` the host's
//! descriptors, `stream` both joined, `table` all streams, `session` the queues, `device` the
//! [`VirtioDevice`](super::VirtioDevice), `handle` what the runtime holds.
//!
//! The process must ignore `SIGPIPE`, as Rust programs do from the start.

mod connection;
mod credit;
mod device;
mod endpoint;
#[cfg(test)]
mod fake_guest;
mod handle;
mod iovec;
mod packet;
mod session;
mod stream;
mod table;

pub use self::device::{Error, Vsock, VsockConfig};
pub use self::endpoint::Endpoint;
pub use self::handle::{StreamEvent, StreamId, VsockHandle};
pub use self::table::Table as VsockState;
