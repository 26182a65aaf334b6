//! A microVM: configuration in, exit reason out. Knows nothing of containers.

pub mod devices;
