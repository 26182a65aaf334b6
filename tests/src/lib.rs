//! Harness for tests that go through the command line of an OCI runtime.
//!
//! A [`runner`] runs each scenario once per isolation, with the same assertions. A scenario gets a
//! [`trial::Trial`]: bundles to run, the runtime's verbs, and at the end a search for what was left behind.
//! `RUNTIME` names the runtime (moat by default); any other than moat runs in process isolation only, which
//! tests the tests.

pub mod broken_guest;
pub mod bundle;
pub mod container;
pub mod leaks;
pub mod outcome;
pub mod requirement;
pub mod rootfs;
pub mod runner;
pub mod spec;
pub mod tree;
pub mod trial;
