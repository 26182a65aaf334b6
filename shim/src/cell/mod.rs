//! The cell: what the host builds around any container, the same for both isolations. Namespaces and
//! their maps, the cgroup, the loopback interface, and the container's init process with the protocol
//! between it and the command line.
//!
//! What runs inside is a [`Payload`](crate::payload::Payload).

pub mod cgroup;
pub mod init;
pub mod namespaces;
pub mod sync;
pub mod userns;
