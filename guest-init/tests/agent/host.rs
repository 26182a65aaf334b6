//! The host's side: starts an agent in a pid and mount namespace of its own and speaks the protocol.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    os::unix::{
        fs::symlink,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, exit},
    time::Duration,
};

use moat_guest_init::{
    agent::Agent,
    listener::{Listener, Listeners},
    machine::Machine,
    reaper::Children,
};
use moat_protocol::{
    PROTOCOL_VERSION,
    frame::{self, Decoder},
    message::{ExitStatus, GuestCgroup, GuestMessage, HostMessage, ProcessId},
    phase::Phase,
    ports::{Stream, StreamHeader},
    workload_spec::{
        DeviceKind, DeviceSpec, MountSource, MountSpec, ProcessSpec, RootSpec, UserSpec, WorkloadSpec,
    },
};
use moat_workload::sys::{CloneRequest, Cloned, clone_process};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

const BUSYBOX: &str = "/usr/bin/busybox";

/// No answer takes longer; a case that waits for one that never comes must fail, not hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the cases can't run here, if they can't.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some(format!("no {BUSYBOX}"));
    }
    if cgroup2().is_none() {
        return Some("no cgroup2 mount".into());
    }
    None
}

fn cgroup2() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists())
}

/// A machine that only remembers.
struct Recorder(fs::File);

impl Recorder {
    fn note(&mut self, text: &str) {
        self.0.write_all(format!("{text}\n").as_bytes()).unwrap();
    }
}

impl Machine for Recorder {
    fn set_clock(&mut self, realtime_ns: u64) -> io::Result<()> {
        self.note(&format!("clock {realtime_ns}"));
        Ok(())
    }
    fn add_entropy(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.note(&format!("entropy of {} bytes", bytes.len()));
        Ok(())
    }
    fn mark(&mut self, phase: Phase) {
        self.note(&format!("mark {phase:?}"));
    }
    fn flush(&mut self) {
        self.note("flush");
    }
    fn say(&mut self, text: &str) {
        self.note(&format!("say {text}"));
    }
}

/// An agent and the connections to it.
pub struct Host {
    dir: tempfile::TempDir,
    agent: Pid,
    control: UnixStream,
    decoder: Decoder,
    cgroup: PathBuf,
}

impl Host {
    /// Starts an agent and connects to its control port.
    pub fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        make_root(&dir.path().join("rootfs"));
        let cgroup = cgroup2()
            .unwrap()
            .join(format!("moat-test-{}", std::process::id()));
        let _ = fs::create_dir(&cgroup);
        let control = UnixListener::bind(dir.path().join("control")).unwrap();
        let streams = UnixListener::bind(dir.path().join("streams")).unwrap();
        let namespaces = 0x2000_0000 | 0x0002_0000; // CLONE_NEWPID, CLONE_NEWNS
        let agent = match clone_process(&CloneRequest {
            namespaces,
            cgroup: None,
        })
        .unwrap()
        {
            Cloned::Parent { pid, .. } => pid,
            Cloned::Child => serve(dir.path(), control.into(), streams.into(), cgroup),
        };
        let connection = UnixStream::connect(dir.path().join("control")).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Host {
            dir,
            agent,
            control: connection,
            decoder: Decoder::new(),
            cgroup,
        }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).unwrap();
    }

    /// A stream connection that says nothing of itself.
    pub fn raw_stream(&self) -> UnixStream {
        let connection = UnixStream::connect(self.dir.path().join("streams")).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    /// Another connection to the control port.
    pub fn second_control(&self) -> UnixStream {
        let connection = UnixStream::connect(self.dir.path().join("control")).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
    }

    pub fn send(&mut self, message: &HostMessage) {
        self.control.write_all(&frame::encode(message).unwrap()).unwrap();
    }

    /// The next message; `None` when the agent has closed the stream.
    pub fn receive(&mut self) -> Option<GuestMessage> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            let mut bytes = [0; 4096];
            match self.control.read(&mut bytes).unwrap() {
                0 => return None,
                read => self.decoder.push(&bytes[..read]),
            }
        }
    }

    pub fn expect(&mut self, expected: &GuestMessage) {
        let received = self.receive();
        assert_eq!(received.as_ref(), Some(expected), "noted: {:?}", self.notes());
    }

    /// Connects a stream of a process.
    pub fn stream(&self, process: ProcessId, stream: Stream) -> UnixStream {
        let mut connection = self.raw_stream();
        connection
            .write_all(&frame::encode(&StreamHeader { process, stream }).unwrap())
            .unwrap();
        connection
    }

    /// The three streams of a process.
    pub fn streams(&self, process: ProcessId) -> [UnixStream; 3] {
        [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|stream| self.stream(process, stream))
    }

    /// Greets the agent.
    pub fn hello(&mut self) {
        self.send(&HostMessage::Hello {
            version: PROTOCOL_VERSION,
            realtime_ns: 7,
            entropy: vec![1; 32],
        });
        self.expect(&GuestMessage::Ready {
            version: PROTOCOL_VERSION,
        });
    }

    /// Greets, prepares a container that runs `script`, connects its streams, and starts it.
    pub fn run(&mut self, script: &str) -> [UnixStream; 3] {
        self.hello();
        let spec = self.spec(script);
        self.send(&HostMessage::Prepare {
            spec: Box::new(spec),
            cgroup: GuestCgroup::default(),
        });
        let streams = self.streams(ProcessId::INIT);
        self.expect(&GuestMessage::Prepared);
        self.send(&HostMessage::Start);
        self.expect(&GuestMessage::Started {
            process: ProcessId::INIT,
        });
        streams
    }

    pub fn expect_exit(&mut self, process: ProcessId, status: ExitStatus) {
        self.expect(&GuestMessage::Exited { process, status });
    }

    /// What the agent did to its machine.
    pub fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Closes the control stream and waits for the agent's end, which must be a good one.
    pub fn close(self) {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        let (_, status) = rustix::process::waitpid(Some(self.agent), WaitOptions::empty())
            .unwrap()
            .unwrap();
        assert_eq!(WaitStatus::exit_status(status), Some(0), "{status:?}");
    }

    /// Children of the agent, dead or alive.
    pub fn children(&self) -> usize {
        let agent = self.agent.as_raw_nonzero();
        let list = fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap();
        list.split_whitespace().count()
    }

    /// A container on the busybox root.
    pub fn spec(&self, script: &str) -> WorkloadSpec {
        let filesystem = |fstype: &str, destination: &str, data: &str| MountSpec {
            destination: destination.into(),
            source: MountSource::Filesystem {
                fstype: fstype.into(),
                source: fstype.into(),
            },
            flags: 0,
            propagation: Vec::new(),
            recursive_set: 0,
            recursive_clear: 0,
            data: data.into(),
            copy_up: false,
        };
        WorkloadSpec {
            root: RootSpec {
                path: self.dir.path().join("rootfs").to_str().unwrap().into(),
                readonly: false,
                propagation: 0,
                no_pivot: false,
            },
            mounts: vec![
                filesystem("proc", "/proc", ""),
                filesystem("tmpfs", "/dev", "mode=755"),
                filesystem("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"),
            ],
            devices: vec![DeviceSpec {
                path: "/dev/null".into(),
                kind: DeviceKind::Character { major: 1, minor: 3 },
                mode: 0o666,
                uid: 0,
                gid: 0,
            }],
            hostname: None,
            domainname: None,
            sysctls: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            process: process(script),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // a case that failed leaves it running
        let _ = rustix::process::kill_process(self.agent, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.agent), WaitOptions::empty());
        let _ = fs::remove_dir(self.cgroup.join("container"));
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// A shell with a script.
pub fn process(script: &str) -> ProcessSpec {
    ProcessSpec {
        args: vec!["sh".into(), "-c".into(), script.into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: UserSpec::default(),
        capabilities: None,
        rlimits: Vec::new(),
        no_new_privileges: false,
        oom_score_adj: None,
        terminal: None,
        apparmor_profile: None,
        selinux_label: None,
        seccomp: None,
        session_keyring: None,
    }
}

fn make_root(root: &Path) {
    for sub in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines() {
        let _ = symlink("busybox", root.join("bin").join(applet));
    }
}

/// The agent's process.
fn serve(dir: &Path, control: OwnedFd, streams: OwnedFd, cgroup: PathBuf) -> ! {
    let notes = fs::File::create(dir.join("notes")).unwrap();
    let listeners = Listeners {
        control: Listener::new(control, |_| true).unwrap(),
        streams: Listener::new(streams, |_| true).unwrap(),
    };
    let children = Children::watch().unwrap();
    let mut agent = Agent::new(Recorder(notes), listeners, children, cgroup).unwrap();
    agent.announce();
    let result = agent.run();
    exit(i32::from(result.is_err()))
}
