//! From a bundle on disk to a [`plan::Plan`]: config.json is read once (`load`), in types of our own
//! (`config`), checked by one function per rule (`validate`), and narrowed to what the rest of the
//! runtime carries out (`plan`). Nothing downstream sees the raw configuration again.
//!
//! Spec: OCI runtime-spec 1.2 "config.md", "config-linux.md", "bundle.md".

pub mod config;
mod devices;
pub mod example;
pub mod load;
pub mod mount_options;
mod mounts;
pub mod names;
mod namespaces;
pub mod plan;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod validate;
