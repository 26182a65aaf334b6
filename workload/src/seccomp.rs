//! Installs the container's seccomp filter, compiled elsewhere (OCI config-linux.md "Seccomp").

use std::io;

use moat_protocol::workload_spec::SeccompSpec;

use crate::sys;

/// The filter was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the seccomp filter ({instructions} instructions, flags {flags:#x})")]
pub struct SeccompError {
    /// Length of the program.
    pub instructions: usize,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Installs the filter; every later system call of this process is subject to it.
///
/// # Errors
/// `EACCES` without both `no_new_privs` and `CAP_SYS_ADMIN`; `EINVAL` for a program the kernel refuses.
pub fn install(spec: &SeccompSpec) -> Result<(), SeccompError> {
    sys::seccomp_set_filter(&spec.program, spec.flags).map_err(|source| SeccompError {
        instructions: spec.program.len() / 8,
        flags: spec.flags,
        source,
    })
}
