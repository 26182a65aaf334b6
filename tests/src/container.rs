//! A container that runs while the scenario goes on.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use crate::bundle::Bundle;
use crate::outcome::{self, Outcome};
use crate::trial::Trial;

/// A container by its id, with the ends of its streams.
pub struct Container<'t> {
    trial: &'t Trial,
    /// Its id.
    pub id: String,
    /// Its standard input, closed by taking it.
    pub stdin: Option<ChildStdin>,
    /// `run`, while it runs; `None` after `create`.
    runtime: Option<Child>,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl<'t> Container<'t> {
    pub(crate) fn run(trial: &'t Trial, bundle: &Bundle) -> Self {
        let (id, mut child) = Self::launch(trial, bundle, "run");
        let mut container = Self::attach(trial, id, &mut child);
        container.runtime = Some(child);
        container
    }

    /// `create` has to end with status 0 while the container it made holds the streams.
    pub(crate) fn create(trial: &'t Trial, bundle: &Bundle) -> Self {
        // So that the container's first process becomes our child, as with an engine's monitor.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .expect("a process may reap orphans");
        let (id, mut child) = Self::launch(trial, bundle, "create");
        let container = Self::attach(trial, id, &mut child);
        let (status, _) = outcome::wait_within(&mut child, Trial::limit());
        assert_eq!(
            outcome::code(status),
            0,
            "create failed: {}",
            container.all_errors()
        );
        container
    }

    fn launch(trial: &Trial, bundle: &Bundle, verb: &str) -> (String, Child) {
        let id = trial.id();
        let mut command = trial.launch(verb, bundle, &id);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        (id, child)
    }

    fn attach(trial: &'t Trial, id: String, child: &mut Child) -> Self {
        Self {
            trial,
            id,
            stdin: child.stdin.take(),
            runtime: None,
            lines: lines(child.stdout.take().expect("stdout is piped")),
            errors: lines(child.stderr.take().expect("stderr is piped")),
        }
    }

    /// Waits for the next line of standard output.
    ///
    /// # Panics
    /// When the workload ends its output, or takes longer than a verb may.
    #[must_use]
    #[track_caller]
    pub fn line(&self) -> String {
        match self.lines.recv_timeout(Trial::limit()) {
            Ok(line) => line,
            Err(e) => panic!(
                "no line from the workload ({e}); on stderr: {}",
                self.all_errors()
            ),
        }
    }

    /// Asserts that the next line of standard output is this one.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn says(&self, expected: &str) {
        assert_eq!(self.line(), expected, "on stderr: {}", self.all_errors());
    }

    /// Whether no line comes within `time`.
    #[must_use]
    pub fn silent_for(&self, time: Duration) -> bool {
        self.lines.recv_timeout(time).is_err()
    }

    /// The rest of standard error that is there by now.
    #[must_use]
    pub fn all_errors(&self) -> String {
        let mut all = Vec::new();
        while let Ok(line) = self.errors.recv_timeout(Duration::from_millis(300)) {
            all.push(line);
        }
        all.join("\n")
    }

    /// A verb on this container: `kill` takes its signal after the id.
    #[must_use]
    pub fn verb(&self, verb: &[&str], after: &[&str]) -> Outcome {
        self.trial.verb(&[verb, &[&self.id], after].concat())
    }

    /// `start`, which has to succeed.
    #[track_caller]
    pub fn start(&self) {
        let _ = self.verb(&["start"], &[]).ok();
    }

    /// `kill` with a signal, which has to succeed.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        let _ = self.verb(&["kill"], &[signal]).ok();
    }

    /// `delete`, which has to succeed.
    #[track_caller]
    pub fn delete(&self) {
        let _ = self.verb(&["delete"], &[]).ok();
    }

    /// What `state` prints.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    #[must_use]
    #[track_caller]
    pub fn state(&self) -> Value {
        let outcome = self.verb(&["state"], &[]).ok();
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("state is no JSON: {e}\n{outcome}"))
    }

    /// The status in the state.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the state has this status.
    ///
    /// # Panics
    /// When it has not within the limit.
    #[track_caller]
    pub fn becomes(&self, status: &str) {
        let deadline = Instant::now() + Trial::limit();
        while self.status() != status {
            assert!(
                Instant::now() < deadline,
                "the status is {}, not {status}",
                self.status()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the pid file says.
    ///
    /// # Panics
    /// When it holds no number.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let file = self.trial.home().join(format!("{}.pid", self.id));
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.trim()
            .parse()
            .unwrap_or_else(|e| panic!("{text:?} in the pid file: {e}"))
    }

    /// Waits for the end, as an engine's monitor does: for `run` itself, or for the process in the pid file.
    ///
    /// # Panics
    /// When it does not end within the limit.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        if let Some(mut child) = self.runtime.take() {
            let (status, timed_out) = outcome::wait_within(&mut child, Trial::limit());
            assert!(!timed_out, "run did not end");
            return outcome::code(status);
        }
        let pid = Pid::from_raw(self.pid()).expect("a pid file holds a pid");
        let deadline = Instant::now() + Trial::limit();
        loop {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    return status
                        .exit_status()
                        .or_else(|| status.terminating_signal().map(|n| 128 + n))
                        .expect("a process exits or is killed");
                }
                Ok(None) => assert!(Instant::now() < deadline, "the container's process did not end"),
                Err(e) => panic!("cannot wait for process {pid:?}: {e}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
