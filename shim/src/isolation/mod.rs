//! Which wall stands around a container, and why.
//!
//! The choice is a pure function ([`choose::choose`]) of what was asked for, of the policy and of what
//! the host can do; [`host`] finds the last out, [`doctor`] tells it to people.

pub mod choose;
pub mod doctor;
pub mod host;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Annotation of config.json by which a container asks for an isolation.
pub const ANNOTATION: &str = "io.moat.isolation";

/// The walls, weakest first: the order is what "strongest" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces, cgroup, capabilities and seccomp on the host's kernel.
    Process,
    /// A microVM with a kernel of its own, its VMM inside the same cell.
    Vm,
}

impl fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Isolation::Process => "process",
            Isolation::Vm => "vm",
        })
    }
}

/// What one source asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: the policy decides.
    #[default]
    Auto,
    /// At least this.
    AtLeast(Isolation),
}

/// A word that names no isolation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown isolation {word:?}: use process, vm or auto")]
pub struct UnknownIsolation {
    /// The word.
    pub word: String,
}

impl FromStr for Wish {
    type Err = UnknownIsolation;

    fn from_str(word: &str) -> Result<Wish, UnknownIsolation> {
        match word {
            "auto" => Ok(Wish::Auto),
            "process" => Ok(Wish::AtLeast(Isolation::Process)),
            "vm" => Ok(Wish::AtLeast(Isolation::Vm)),
            _ => Err(UnknownIsolation {
                word: word.to_owned(),
            }),
        }
    }
}
