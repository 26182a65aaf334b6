//! User, groups and capabilities (OCI config.md "User"; config.md "Linux Process", `capabilities`;
//! `capabilities(7)`).

use std::io;

use moat_protocol::workload_spec::{CapabilitySets, UserSpec};
use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{self, CapabilitySet},
};

use crate::sys;

/// Highest capability number that a `u64` mask can name; the kernel's own last is found by asking.
const MAX_CAPABILITY: u32 = 63;
/// `CAP_SYS_ADMIN`, as a mask.
const SYS_ADMIN: u64 = 1 << 21;

/// Ids or capabilities could not be taken on.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// `(uid_t) -1` and `(gid_t) -1` mean "leave it" to the kernel.
    #[error("id {id} is not a valid user or group id")]
    InvalidId {
        /// The id.
        id: u32,
    },
    /// Supplementary groups.
    #[error("cannot set the supplementary groups {groups:?}")]
    Groups {
        /// Which.
        groups: Vec<u32>,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Group id.
    #[error("cannot set the group id to {gid}")]
    Gid {
        /// Which.
        gid: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// User id.
    #[error("cannot set the user id to {uid}")]
    Uid {
        /// Which.
        uid: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A capability set.
    #[error("cannot set the {set} capabilities to {mask:#x}")]
    Capabilities {
        /// Which set.
        set: &'static str,
        /// Mask.
        mask: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Capabilities that wait for the last moment; see [`become_user`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Rest(Option<CapabilitySets>);

impl Rest {
    /// Gives up what was kept for installing the seccomp filter.
    pub(crate) fn drop_kept(&self) -> Result<(), CredentialError> {
        match &self.0 {
            Some(sets) => set(sets),
            None => Ok(()),
        }
    }
}

/// Takes on ids and capabilities. When `keep_sys_admin` (a filter is to be installed without
/// `no_new_privs`), `CAP_SYS_ADMIN` stays until [`Rest::drop_kept`].
pub(crate) fn become_user(
    user: &UserSpec,
    capabilities: Option<&CapabilitySets>,
    keep_sys_admin: bool,
) -> Result<Rest, CredentialError> {
    if let Some(&id) = [user.uid, user.gid]
        .iter()
        .chain(&user.additional_gids)
        .find(|&&id| id == u32::MAX)
    {
        return Err(CredentialError::InvalidId { id });
    }
    if let Some(sets) = capabilities {
        drop_bounding(sets.bounding)?;
        if user.uid != 0 {
            thread::set_keep_capabilities(true).map_err(|errno| failed("kept", sets.permitted, errno))?;
        }
    }
    set_groups(&user.additional_gids)?;
    let gid = Gid::from_raw(user.gid);
    thread::set_thread_res_gid(gid, gid, gid).map_err(|errno| CredentialError::Gid {
        gid: user.gid,
        source: errno.into(),
    })?;
    let uid = Uid::from_raw(user.uid);
    thread::set_thread_res_uid(uid, uid, uid).map_err(|errno| CredentialError::Uid {
        uid: user.uid,
        source: errno.into(),
    })?;
    let Some(sets) = capabilities else {
        return Ok(Rest(None));
    };
    let extra = if keep_sys_admin {
        SYS_ADMIN & !sets.effective
    } else {
        0
    };
    let now = CapabilitySets {
        effective: sets.effective | extra,
        permitted: sets.permitted | extra,
        ..*sets
    };
    let granted = set_what_is_possible(&now)?;
    set_ambient(sets.ambient & granted.permitted & granted.inheritable)?;
    let rest = CapabilitySets {
        effective: granted.effective & (sets.effective | !extra),
        permitted: granted.permitted & (sets.permitted | !extra),
        ..granted
    };
    Ok(Rest((extra != 0).then_some(rest)))
}

/// The bounding set can only shrink: what the caller lacks, the container can't be given.
fn drop_bounding(bounding: u64) -> Result<(), CredentialError> {
    for capability in (0..=MAX_CAPABILITY).filter(|capability| bounding & (1 << capability) == 0) {
        match sys::drop_bounding(capability) {
            Ok(()) => {}
            // the kernel's last capability is passed
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            Err(source) => {
                return Err(CredentialError::Capabilities {
                    set: "bounding",
                    mask: bounding,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn set_groups(groups: &[u32]) -> Result<(), CredentialError> {
    let gids: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match thread::set_thread_groups(&gids) {
        // a user namespace that denies setgroups: its members keep the groups that they came with
        Err(Errno::PERM) if groups.is_empty() => Ok(()),
        result => result.map_err(|errno| CredentialError::Groups {
            groups: groups.to_vec(),
            source: errno.into(),
        }),
    }
}

/// Sets the three sets; what the caller itself lacks is left out ("runtimes SHOULD NOT fail if the
/// container configuration requests capabilities that cannot be granted", config.md).
fn set_what_is_possible(sets: &CapabilitySets) -> Result<CapabilitySets, CredentialError> {
    match set(sets) {
        Err(CredentialError::Capabilities { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {}
        result => return result.map(|()| *sets),
    }
    let own = thread::capabilities(None).map_err(|errno| failed("permitted", sets.permitted, errno))?;
    let (own_permitted, own_inheritable) = (own.permitted.bits(), own.inheritable.bits());
    let permitted = sets.permitted & own_permitted;
    let granted = CapabilitySets {
        effective: sets.effective & permitted,
        permitted,
        inheritable: sets.inheritable & (own_permitted | own_inheritable),
        ..*sets
    };
    set(&granted).map(|()| granted)
}

fn set(sets: &CapabilitySets) -> Result<(), CredentialError> {
    let bits = CapabilitySet::from_bits_retain;
    let sets_now = thread::CapabilitySets {
        effective: bits(sets.effective),
        permitted: bits(sets.permitted),
        inheritable: bits(sets.inheritable),
    };
    thread::set_capabilities(None, sets_now).map_err(|errno| failed("effective", sets.effective, errno))
}

fn set_ambient(ambient: u64) -> Result<(), CredentialError> {
    let error = |source| CredentialError::Capabilities {
        set: "ambient",
        mask: ambient,
        source,
    };
    sys::clear_ambient().map_err(error)?;
    for capability in (0..=MAX_CAPABILITY).filter(|capability| ambient & (1 << capability) != 0) {
        sys::raise_ambient(capability).map_err(error)?;
    }
    Ok(())
}

fn failed(set: &'static str, mask: u64, errno: Errno) -> CredentialError {
    CredentialError::Capabilities {
        set,
        mask,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_that_means_unchanged_is_refused() {
        let user = UserSpec {
            uid: u32::MAX,
            ..UserSpec::default()
        };
        assert!(matches!(
            become_user(&user, None, false),
            Err(CredentialError::InvalidId { id: u32::MAX })
        ));
    }
}
