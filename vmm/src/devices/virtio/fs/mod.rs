//! virtio-fs (VIRTIO 1.2, 5.11) with a FUSE server of its own (Linux `include/uapi/linux/fuse.h`, 7.31 to
//! 7.41): one directory tree of the host, with all that is mounted below it, in the guest.
//!
//! The guest is hostile. Whatever it sends, the server
//!
//! - reaches no inode that is not below the root: names are single components, looked up from the
//!   directory's descriptor without following links (`names.rs`, `host.rs`);
//! - opens nothing but regular files and directories, with flags from an allow-list (`file.rs`);
//! - allocates by its own limits, not by sizes in requests (`server.rs`);
//! - keeps within a budget of descriptors, however many inodes the guest knows (`descriptors.rs`);
//! - answers each request that has a header and room for an answer, and never waits for the guest.
//!
//! What the tree looks like to programs, where it differs from a mount on the host: device nodes cannot be
//! made (EPERM) nor whiteouts (EINVAL); `security.*` and `trusted.*` attributes are hidden but for file
//! capabilities by rule; locks are the guest's own; a bind mount of a single file has the device number of
//! the directory that it is in.
//!
//! `device.rs` is the virtio half and `server.rs` the table of operations; a new reader starts there.

mod abi;
mod attr;
mod config;
mod create;
mod descriptors;
mod device;
mod dir;
mod file;
mod handle;
mod host;
mod init;
mod inode;
mod lookup;
mod names;
mod server;
mod sys;
#[cfg(test)]
mod tests;
mod tree;
mod wire;
mod xattr;

pub use config::{Cache, CachePolicy, Error, FsConfig};
pub use device::{Fs, FsState};
