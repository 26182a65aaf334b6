//! What host and guest of a moat microVM say to each other: the shape of the messages, how they are
//! framed on a byte stream, and the numbers (vsock ports, boot phases) that both sides must know.
//!
//! [`workload_spec`] is also what the host hands to the `workload` crate when a container runs as a
//! namespaced process, so both isolations become the workload from the same description.
//!
//! There is no I/O here and no `unsafe`: everything is data and pure functions, and can be tested and
//! fuzzed without a guest.

#![forbid(unsafe_code)]

pub mod frame;
pub mod message;
pub mod phase;
pub mod ports;
pub mod workload_spec;

/// Version of the protocol; host and guest must agree, since both come from one build.
pub const PROTOCOL_VERSION: u32 = 1;
