//! A microVM: configuration in, exit reason out. Knows nothing of containers.

pub mod boot;
pub mod builder;
pub mod bus;
pub mod config;
pub mod devices;
pub mod event;
pub mod event_loop;
pub mod irq;
mod kvm;
pub mod layout;
pub mod memory;
pub mod vcpu;
pub mod vm;
