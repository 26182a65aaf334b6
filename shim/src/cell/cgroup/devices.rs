//! Rules of the device controller (config-linux.md "Allowed Device list"): the configuration's, then
//! those that every container gets, on a ground of denial.

use super::CgroupError;
use crate::bundle::resources::DeviceRule;

/// Which device nodes a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Character,
}

/// Accesses as the kernel's `BPF_DEVCG_ACC_*` bits.
pub mod access {
    /// `mknod`.
    pub const MKNOD: u8 = 1;
    /// Open for reading.
    pub const READ: u8 = 2;
    /// Open for writing.
    pub const WRITE: u8 = 4;
    /// All of them.
    pub const ALL: u8 = MKNOD | READ | WRITE;
}

/// One rule, checked. Of several that match, the last decides for each access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind.
    pub kind: Kind,
    /// Major number, any when `None`.
    pub major: Option<u32>,
    /// Minor number, any when `None`.
    pub minor: Option<u32>,
    /// Bits of [`access`].
    pub access: u8,
}

impl Rule {
    const fn character(major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule {
            allow: true,
            kind: Kind::Character,
            major,
            minor,
            access,
        }
    }

    /// Whether the rule decides about everything, so that those before it say nothing.
    pub fn is_total(self) -> bool {
        self.kind == Kind::All && self.major.is_none() && self.minor.is_none() && self.access == access::ALL
    }
}

/// What every container may use: nodes of any number may be made (not opened), the default devices
/// (config-linux.md "Default Devices") and pseudo terminals.
const DEFAULT: [Rule; 10] = [
    Rule::character(None, None, access::MKNOD),
    Rule {
        allow: true,
        kind: Kind::Block,
        major: None,
        minor: None,
        access: access::MKNOD,
    },
    Rule::character(Some(1), Some(3), access::ALL),
    Rule::character(Some(1), Some(5), access::ALL),
    Rule::character(Some(1), Some(7), access::ALL),
    Rule::character(Some(1), Some(8), access::ALL),
    Rule::character(Some(1), Some(9), access::ALL),
    Rule::character(Some(5), Some(0), access::ALL),
    Rule::character(Some(5), Some(2), access::ALL),
    Rule::character(Some(136), None, access::ALL),
];

/// The rules of a container, in order; the first one is about everything.
///
/// # Errors
/// When a rule has an unknown kind or access.
pub fn rules(configured: &[DeviceRule]) -> Result<Vec<Rule>, CgroupError> {
    let deny_all = Rule {
        allow: false,
        kind: Kind::All,
        major: None,
        minor: None,
        access: access::ALL,
    };
    let mut rules = vec![deny_all];
    for rule in configured {
        let rule = check(rule)?;
        if rule.is_total() {
            rules.clear();
        }
        rules.push(rule);
    }
    if !matches!(rules[..], [only] if only.allow) {
        rules.extend(DEFAULT);
    }
    Ok(rules)
}

fn check(rule: &DeviceRule) -> Result<Rule, CgroupError> {
    let refused = |reason| CgroupError::Unsupported {
        field: "devices".into(),
        reason,
    };
    let kind = match rule.kind.as_str() {
        "" | "a" => Kind::All,
        "b" => Kind::Block,
        "c" | "u" => Kind::Character,
        _ => return Err(refused("a rule's type is a, b or c")),
    };
    let number = |number: Option<i64>| match number {
        None => Ok(None),
        Some(negative) if negative < 0 => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| refused("a device number is too large")),
    };
    let mut bits = 0;
    for letter in rule.access.chars() {
        bits |= match letter {
            'r' => access::READ,
            'w' => access::WRITE,
            'm' => access::MKNOD,
            _ => return Err(refused("a rule's access is made of r, w and m")),
        };
    }
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    let access = if bits == 0 { access::ALL } else { bits };
    Ok(Rule {
        allow: rule.allow,
        kind,
        major,
        minor,
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(allow: bool, kind: &str, major: Option<i64>, access: &str) -> DeviceRule {
        DeviceRule {
            allow,
            kind: kind.into(),
            major,
            minor: None,
            access: access.into(),
        }
    }

    #[test]
    fn without_rules_only_the_default_devices_are_allowed() {
        let rules = rules(&[]).unwrap();
        assert!(!rules[0].allow && rules[0].is_total());
        assert_eq!(rules[1..], DEFAULT);
    }

    #[test]
    fn a_privileged_container_has_one_rule() {
        let rules = rules(&[
            configured(false, "a", None, "rwm"),
            configured(true, "", None, ""),
        ])
        .unwrap();
        assert_eq!(rules.len(), 1);
        assert!(rules[0].allow);
    }

    #[test]
    fn a_negative_number_is_any_number() {
        let rules = rules(&[configured(true, "c", Some(-1), "rw")]).unwrap();
        assert_eq!(rules[1].major, None);
        assert_eq!(rules[1].access, access::READ | access::WRITE);
    }

    #[test]
    fn meaningless_rules_are_refused() {
        assert!(rules(&[configured(true, "x", None, "r")]).is_err());
        assert!(rules(&[configured(true, "c", None, "rx")]).is_err());
        assert!(rules(&[configured(true, "c", Some(1 << 40), "r")]).is_err());
    }
}
