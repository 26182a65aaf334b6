//! Resource limits and the OOM score (OCI config.md "Process", `rlimits`; config-linux-process
//! `oomScoreAdj`).

use std::io;

use moat_protocol::workload_spec::RlimitSpec;

use crate::{procfs::Procfs, sys};

/// Names of resource limits without `RLIMIT_`, by number (`asm-generic/resource.h`).
pub const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// A limit that could not be set.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// `setrlimit`.
    #[error("cannot set RLIMIT_{name} to {soft} (hard {hard})")]
    Rlimit {
        /// Name, or the number of an unknown one.
        name: String,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// `/proc/self/oom_score_adj`.
    #[error("cannot set oom_score_adj to {value}")]
    OomScore {
        /// What it was to become.
        value: i32,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Sets the limits, in order.
///
/// # Errors
/// For the first one that fails.
pub fn set_rlimits(limits: &[RlimitSpec]) -> Result<(), LimitError> {
    for limit in limits {
        sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(|source| LimitError::Rlimit {
            name: name(limit.resource),
            soft: limit.soft,
            hard: limit.hard,
            source,
        })?;
    }
    Ok(())
}

/// Sets how likely the kernel kills this process when memory is short.
///
/// # Errors
/// When `/proc` is no procfs, or the value is below what the caller may set.
pub fn set_oom_score(value: i32) -> Result<(), LimitError> {
    Procfs::own()
        .and_then(|procfs| procfs.write_own("oom_score_adj", &value.to_string()))
        .map_err(|source| LimitError::OomScore { value, source })
}

fn name(resource: u32) -> String {
    let name = usize::try_from(resource).ok().and_then(|index| NAMES.get(index));
    name.map_or_else(|| resource.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_numbers() {
        assert_eq!(name(libc::RLIMIT_NOFILE), "NOFILE");
        assert_eq!(name(libc::RLIMIT_RTTIME), "RTTIME");
        assert_eq!(name(16), "16");
    }

    #[test]
    fn an_impossible_limit_is_named() {
        let limit = RlimitSpec {
            resource: libc::RLIMIT_CORE,
            soft: 2,
            hard: 1,
        };
        let error = set_rlimits(&[limit]).unwrap_err();
        assert_eq!(error.to_string(), "cannot set RLIMIT_CORE to 2 (hard 1)");
    }
}
