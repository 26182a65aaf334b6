//! All that moat prints, and nothing else prints: errors with a hint, the log that engines read, states,
//! tables, and the answers of verbs that only tell.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what this folder is for"
)]

pub mod error;
pub mod features;
pub mod log;
pub mod table;
pub mod time;

use serde::Serialize;

/// Prints lines of text.
pub fn text(text: &str) {
    println!("{}", text.trim_end_matches('\n'));
}

/// Prints a value as JSON, indented as runc does.
pub fn json<T: Serialize>(value: &T) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        println!("{text}");
    }
}

/// Prints a value as JSON on one line.
pub fn json_line<T: Serialize>(value: &T) {
    if let Ok(text) = serde_json::to_string(value) {
        println!("{text}");
    }
}

/// Prints a line to standard error.
fn complain(line: &str) {
    eprintln!("{line}");
}
