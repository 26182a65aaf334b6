//! The log: a file that the engine names by `--log`, in the form that it names by `--log-format`, and
//! standard error for people. containerd reads the last line of the file for its error message, in the
//! form of runc: `{"level":"error","msg":"…","time":"…"}`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::Serialize;

use super::time::rfc3339_seconds;

/// Form of the log file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Warning,
    Error,
}

struct Log {
    file: Option<File>,
    format: Format,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// The log file can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {}", path.display())]
pub struct LogError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Sets the log up. Called once, before anything is logged.
///
/// # Errors
/// When the file can't be opened.
pub fn open(path: Option<&Path>, format: Format) -> Result<(), LogError> {
    let file = path
        .map(|path| {
            let opened = OpenOptions::new().append(true).create(true).open(path);
            opened.map_err(|source| LogError {
                path: path.to_owned(),
                source,
            })
        })
        .transpose()?;
    let _set_before = LOG.set(Log { file, format });
    Ok(())
}

/// Something odd that stops nothing.
pub fn warn(message: &str) {
    super::complain(&format!("warning: {message}"));
    write(Level::Warning, message);
}

/// The request failed. Standard error is told by the caller, with a hint.
pub fn error(message: &str) {
    write(Level::Error, message);
}

fn write(level: Level, message: &str) {
    let Some(Log {
        file: Some(file),
        format,
    }) = LOG.get()
    else {
        return;
    };
    let line = line(level, message, &rfc3339_seconds(SystemTime::now()), *format);
    // A full disk must not hide the error that is being told.
    let _lost = (&mut &*file).write_all(line.as_bytes());
}

#[derive(Serialize)]
struct Line<'a> {
    level: Level,
    msg: &'a str,
    time: &'a str,
}

fn line(level: Level, message: &str, time: &str, format: Format) -> String {
    match format {
        Format::Json => {
            let line = Line {
                level,
                msg: message,
                time,
            };
            serde_json::to_string(&line).unwrap_or_default() + "\n"
        }
        Format::Text => {
            let level = match level {
                Level::Warning => "warning",
                Level::Error => "error",
            };
            format!("time={time:?} level={level} msg={message:?}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_what_runc_writes() {
        assert_eq!(
            line(Level::Error, "no \"x\"", "2026-01-01T00:00:00Z", Format::Json),
            "{\"level\":\"error\",\"msg\":\"no \\\"x\\\"\",\"time\":\"2026-01-01T00:00:00Z\"}\n"
        );
    }

    #[test]
    fn a_text_line_stays_one_line() {
        assert_eq!(
            line(Level::Warning, "two\nlines", "2026-01-01T00:00:00Z", Format::Text),
            "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"two\\nlines\"\n"
        );
    }
}
