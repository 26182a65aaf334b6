//! Runs a command to its end within a limit of time and keeps what it said.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How a command ended.
pub struct Outcome {
    /// Its exit status, 128 + n when signal n ended it.
    pub status: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// It did not end within the limit and was killed.
    pub timed_out: bool,
    /// From before it was spawned until its exit status was there.
    pub took: Duration,
}

impl Outcome {
    /// Standard output as text, without blanks at its ends.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, without blanks at its ends.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// The value of a line `key=value` of standard output.
    ///
    /// # Panics
    /// When there is no such line.
    #[must_use]
    #[track_caller]
    pub fn value(&self, key: &str) -> String {
        let text = self.text();
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find_map(|(k, v)| (k == key).then(|| v.trim().to_owned()))
            .unwrap_or_else(|| panic!("no {key}= in the output\n{self}"))
    }

    /// Asserts exit status 0 and returns itself.
    ///
    /// # Panics
    /// When the status is another.
    #[must_use]
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status == 0, "expected exit status 0\n{self}");
        self
    }

    /// Asserts a refusal as runc's: exit status 1 and something on standard error.
    ///
    /// # Panics
    /// When it succeeded, crashed, or said nothing.
    #[track_caller]
    pub fn refused(&self) {
        assert_eq!(self.status, 1, "expected a refusal with exit status 1\n{self}");
        assert!(!self.errors().is_empty(), "a refusal without a word\n{self}");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3000; // enough for a console's tail, bounded for 100 MiB streams
        let head = |bytes: &[u8]| match std::str::from_utf8(&bytes[..bytes.len().min(SHOWN)]) {
            Err(e) if e.error_len().is_some() => "not text".to_owned(),
            _ => String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned(),
        };
        writeln!(
            f,
            "exit status {}{} after {:.1?}",
            self.status,
            if self.timed_out { " (timed out)" } else { "" },
            self.took
        )?;
        writeln!(f, "stdout ({} bytes): {}", self.stdout.len(), head(&self.stdout))?;
        write!(f, "stderr ({} bytes): {}", self.stderr.len(), head(&self.stderr))
    }
}

/// What a command gets on standard input.
pub enum Input {
    /// `/dev/null`.
    Null,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
}

/// Runs `command` until its end, or kills it after `limit`.
///
/// # Panics
/// When it cannot be spawned.
#[must_use]
pub fn run(command: &mut Command, input: Input, limit: Duration) -> Outcome {
    let begin = Instant::now();
    let stdin = if matches!(input, Input::Null) {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    if let (Input::Bytes(bytes), Some(mut pipe)) = (input, child.stdin.take()) {
        thread::spawn(move || {
            let _ = pipe.write_all(&bytes); // the workload need not read it all
        });
    }
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let (status, timed_out) = wait_within(&mut child, limit);
    let took = begin.elapsed();
    // What it left running may hold the pipes: their end is waited for, but not without a limit.
    const DRAIN: Duration = Duration::from_secs(10);
    Outcome {
        status: code(status),
        stdout: stdout.recv_timeout(DRAIN).unwrap_or_default(),
        stderr: stderr.recv_timeout(DRAIN).unwrap_or_default(),
        timed_out,
        took,
    }
}

/// The exit status as a shell shows it: 128 + n when signal n ended the process.
#[must_use]
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|n| 128 + n))
        .unwrap_or(-1)
}

/// Waits for `child`; kills it after `limit` and says so.
///
/// # Panics
/// When it cannot be waited for.
pub fn wait_within(child: &mut Child, limit: Duration) -> (ExitStatus, bool) {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return (status, false),
            Ok(None) if Instant::now() >= deadline => {
                let _ = child.kill();
                return (child.wait().expect("a child can be waited for"), true);
            }
            Ok(None) => thread::sleep(pause),
            Err(e) => panic!("cannot wait for a child: {e}"),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let end: io::Result<_> = pipe.read_to_end(&mut bytes);
        let _ = end.map(|_| sender.send(bytes));
    });
    receiver
}
