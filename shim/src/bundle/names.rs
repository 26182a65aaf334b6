//! Names of the kernel's numbers: capabilities, resource limits, signals.

/// Capability names without `CAP_`, by number (`linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Signal names without `SIG`, from number 1 (x86-64).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Other names that are in use.
const SIGNAL_ALIASES: [(&str, u8); 4] = [("IOT", 6), ("POLL", 29), ("CLD", 17), ("UNUSED", 31)];

/// First realtime signal that programs may use (the C library keeps 32 and 33).
const SIGRTMIN: u8 = 34;
/// Last signal.
const SIGRTMAX: u8 = 64;

/// Number of a capability, by its name with `CAP_`.
pub fn capability(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_")?;
    position(&CAPABILITIES, name)
}

/// All capability names, with `CAP_`.
pub fn capabilities() -> impl Iterator<Item = String> {
    CAPABILITIES.iter().map(|name| format!("CAP_{name}"))
}

/// Number of a resource limit, by its name with `RLIMIT_`.
pub fn rlimit(name: &str) -> Option<u32> {
    position(&moat_workload::limits::NAMES, name.strip_prefix("RLIMIT_")?)
}

fn position(names: &[&str], name: &str) -> Option<u32> {
    names
        .iter()
        .position(|known| *known == name)
        .and_then(|index| u32::try_from(index).ok())
}

/// Number of a signal, by number or by name with or without `SIG`, in any case.
pub fn signal(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse::<u8>() {
        let reserved = usize::from(number) > SIGNALS.len() && number < SIGRTMIN;
        return ((1..=SIGRTMAX).contains(&number) && !reserved).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
        return u8::try_from(index + 1).ok();
    }
    if let Some((_, number)) = SIGNAL_ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some(*number);
    }
    realtime_signal(name)
}

fn realtime_signal(name: &str) -> Option<u8> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => SIGRTMIN,
        (_, Some("")) => SIGRTMAX,
        (Some(above), _) => SIGRTMIN.checked_add(above.strip_prefix('+')?.parse().ok()?)?,
        (_, Some(below)) => SIGRTMAX.checked_sub(below.strip_prefix('-')?.parse().ok()?)?,
        (None, None) => return None,
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(capability("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(capability("CAP_AUDIT_READ"), Some(37));
        assert_eq!(capability("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(rlimit("RLIMIT_NOFILE"), Some(nix::libc::RLIMIT_NOFILE));
        assert_eq!(rlimit("RLIMIT_RTTIME"), Some(nix::libc::RLIMIT_RTTIME));
        for (name, number) in [
            ("USR1", nix::libc::SIGUSR1),
            ("SYS", nix::libc::SIGSYS),
            ("WINCH", nix::libc::SIGWINCH),
        ] {
            assert_eq!(signal(name).map(i32::from), Some(number));
        }
    }

    #[test]
    fn signals_are_found_by_number_and_name() {
        for text in ["15", "TERM", "SIGTERM", "term", "sigterm"] {
            assert_eq!(signal(text), Some(15), "{text}");
        }
        assert_eq!(signal("SIGRTMIN+3"), Some(37));
        assert_eq!(signal("RTMAX-1"), Some(63));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "", "0", "32", "33", "65", "-9", "NOPE", "SIG", "RTMIN+31", "RTMAX-31", "RTMIN3", "256",
        ] {
            assert_eq!(signal(text), None, "{text}");
        }
    }

    #[test]
    fn capability_names_need_their_prefix_and_case() {
        assert_eq!(capability("KILL"), None);
        assert_eq!(capability("cap_kill"), None);
    }
}
