//! Vsock port numbers. Only the host opens streams, always to guest ports below 1024, which a workload
//! without `CAP_NET_BIND_SERVICE` in the guest's initial user namespace cannot listen on.

use serde::{Deserialize, Serialize};

use crate::message::ProcessId;

/// Context id of the guest. Every moat guest has the same one: each VMM ends its own vsock, so ids
/// never meet (VIRTIO 1.2, 5.10.4: 0 to 2 are reserved).
pub const GUEST_CID: u32 = 3;

/// The control stream: one per VM, framed messages both ways.
pub const CONTROL_PORT: u32 = 1;

/// Standard streams: each connection begins with one framed [`StreamHeader`] from the host and
/// carries raw bytes from then on.
pub const STREAM_PORT: u32 = 2;

/// Tag of the guest's virtio-fs device.
pub const FS_TAG: &str = "moat";

/// Where guest-init mounts it: `rootfs` and `volumes/N` of the cell are below.
pub const GUEST_CELL: &str = "/run/cell";

/// Which stream of which process a connection to [`STREAM_PORT`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// The process that the stream belongs to.
    pub process: ProcessId,
    /// Its role.
    pub stream: Stream,
}

/// The role of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stream {
    /// Bytes from the host to the process; the host's half-close is the process's end of file.
    Stdin,
    /// Bytes from the process to the host; the guest's half-close says that every writer is gone.
    Stdout,
    /// As [`Stream::Stdout`], for standard error.
    Stderr,
    /// Both directions of the process's terminal.
    Terminal,
}
