//! PID 1 of a moat microVM: mounts what a guest needs, listens for the host on vsock, and runs the
//! workload, by the same crate that runs it on the host, as pid 1 of namespaces of its own.
//!
//! One thread, one epoll loop ([`agent`]). It must not end: a guest whose PID 1 ends panics. So errors
//! are answered on the control stream or written to the console, and the machine is powered off by a
//! reset (the kernel's command line has `reboot=k`), which is how the VMM learns of the end.
//!
//! A library beside the program, so that the agent can be tested on any machine, over sockets of another
//! kind and without touching its clock.

#![forbid(unsafe_code)]

pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod console;
mod control;
mod launch;
pub mod listener;
pub mod machine;
mod poller;
mod process;
pub mod reaper;
pub mod relay;
mod stdio;
mod sync;
