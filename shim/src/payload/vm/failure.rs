//! A microVM that does not come up, or ends before its workload, explains itself: what happened, how
//! far it came and when, and the last lines of the guest's console.

use std::fmt;
use std::time::Duration;

use moat_protocol::phase::Phase;

/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 20;

/// What ended a microVM before its workload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The guest's kernel panicked.
    Panic,
    /// The guest was reset without a word.
    Reset,
    /// A vCPU hit a triple fault.
    TripleFault,
    /// Nothing was heard of the guest for this long.
    Silent(Duration),
    /// The host side failed: KVM, a device, a system call.
    Host(String),
    /// guest-init refused or could not do what was asked.
    Refused(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Panic => formatter.write_str("the guest's kernel panicked"),
            Cause::Reset => formatter.write_str("the guest reset itself"),
            Cause::TripleFault => formatter.write_str("a vCPU of the guest hit a triple fault"),
            Cause::Silent(limit) => {
                write!(
                    formatter,
                    "the guest did not come up within {} s",
                    limit.as_secs()
                )
            }
            Cause::Host(what) => write!(formatter, "the VMM failed: {what}"),
            Cause::Refused(what) => formatter.write_str(what),
        }
    }
}

/// The whole explanation. Its text has several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFailure {
    /// What happened.
    pub cause: Cause,
    /// Boot clock: marks in the order of arrival, and when, since the guest's first instruction.
    pub marks: Vec<(u8, Duration)>,
    /// The guest's console.
    pub console: String,
}

impl VmFailure {
    /// Whether the guest itself answered, so that its console and phases explain nothing.
    fn is_answer(&self) -> bool {
        matches!(self.cause, Cause::Refused(_))
    }
}

impl fmt::Display for VmFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.cause)?;
        if self.is_answer() {
            return Ok(());
        }
        let phases: Vec<String> = self
            .marks
            .iter()
            .filter_map(|(mark, at)| {
                Some(format!(
                    "{} at {} ms",
                    Phase::from_mark(*mark)?.describe(),
                    at.as_millis()
                ))
            })
            .collect();
        if phases.is_empty() {
            formatter.write_str("\n  phase reached: kernel entered, guest-init not started")?;
        } else {
            write!(formatter, "\n  phase reached: {}", phases.join(", "))?;
        }
        let lines: Vec<&str> = self
            .console
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        if lines.is_empty() {
            return formatter.write_str("\n  the guest's console is empty");
        }
        let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        write!(
            formatter,
            "\n  last {} lines of the guest's console:",
            shown.len()
        )?;
        for line in shown {
            write!(formatter, "\n    {}", printable(line))?;
        }
        Ok(())
    }
}

/// The console is written by the guest: no control characters of its choice reach a terminal.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

impl std::error::Error for VmFailure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_shows_the_phase_and_the_end_of_the_console() {
        let console = (0..100).map(|n| format!("line {n}\n")).collect();
        let marks = vec![(Phase::InitStarted.mark(), Duration::from_millis(17))];
        let text = VmFailure {
            cause: Cause::Panic,
            marks,
            console,
        }
        .to_string();
        assert!(text.starts_with("the guest's kernel panicked\n"), "{text}");
        assert!(text.contains("guest-init started at 17 ms"), "{text}");
        assert!(
            text.contains("line 99") && text.contains("line 80") && !text.contains("line 79"),
            "{text}"
        );
    }

    #[test]
    fn a_guest_that_never_reached_init_says_so() {
        let cause = Cause::Silent(Duration::from_secs(5));
        let text = VmFailure {
            cause,
            marks: vec![],
            console: String::new(),
        }
        .to_string();
        assert!(
            text.contains("guest-init not started") && text.contains("console is empty"),
            "{text}"
        );
    }

    #[test]
    fn escape_sequences_of_the_guest_do_not_reach_the_terminal() {
        let console = "\u{1b}[2Jgone".to_owned();
        let text = VmFailure {
            cause: Cause::Reset,
            marks: vec![],
            console,
        }
        .to_string();
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn an_answer_of_guest_init_is_shown_alone() {
        let cause = Cause::Refused("executable file \"x\" not found in $PATH".into());
        let text = VmFailure {
            cause,
            marks: vec![],
            console: "noise".into(),
        }
        .to_string();
        assert_eq!(text, "executable file \"x\" not found in $PATH");
    }
}
