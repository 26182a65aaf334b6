//! The cases.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use moat_protocol::{
    message::{ExitStatus, GuestCgroup, GuestMessage, HostMessage, ProcessId},
    ports::Stream,
    workload_spec::TerminalSpec,
};
use moat_workload::sys::{CloneRequest, Cloned, clone_process};

use crate::host::{Host, process};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name as fn())),*] };
}

/// Every case.
pub const ALL: &[Case] = cases! {
    a_container_runs_from_hello_to_its_exit
    an_exit_status_arrives
    a_signal_arrives_and_so_does_death_by_one
    a_signal_to_all_reaches_every_process
    a_container_that_cannot_be_built_is_explained
    a_missing_program_is_explained_before_start
    a_container_killed_before_start_is_no_success
    requests_out_of_order_are_refused
    hundred_mebibytes_pass_unchanged
    standard_error_is_a_stream_of_its_own
    the_end_of_input_is_seen
    the_end_of_output_is_seen_before_the_exit
    output_of_a_workload_that_is_gone_waits_for_the_host
    streams_may_connect_before_the_container_is_asked_for
    a_stream_without_a_header_is_dropped
    a_background_process_dies_with_the_first
    a_terminal_carries_both_directions_and_its_size
    a_further_process_runs_in_the_container
    a_further_process_has_streams_and_a_terminal_of_its_own
    a_further_process_that_is_missing_is_explained
    a_further_process_leaves_its_children_behind
    closing_the_control_stream_ends_the_agent
    a_damaged_control_stream_ends_the_agent
    a_second_control_stream_is_closed
    nothing_is_left_unreaped
    a_limit_that_is_refused_is_named
};

fn read_all(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn a_container_runs_from_hello_to_its_exit() {
    let mut host = Host::new();
    let [_, mut out, _] = host.run("echo pid $$; cat /proc/self/cgroup | tail -1");
    assert_eq!(read_all(&mut out), "pid 1\n0::/\n");
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    let expected = [
        "mark InitListening",
        "clock 7",
        "entropy of 32 bytes",
        "mark WorkloadPrepared",
        "mark WorkloadStarted",
        "flush",
        "mark WorkloadEnded",
    ];
    assert_eq!(host.notes(), expected);
    host.close();
}

fn an_exit_status_arrives() {
    for code in [1, 42, 255] {
        let mut host = Host::new();
        let _streams = host.run(&format!("exit {code}"));
        host.expect_exit(ProcessId::INIT, ExitStatus::Code(code));
        host.close();
    }
}

fn a_signal_arrives_and_so_does_death_by_one() {
    let mut host = Host::new();
    let [_, mut out, _] = host.run("trap 'echo got it' USR1; echo ready; while :; do sleep 0.05; done");
    let mut line = [0; 6];
    out.read_exact(&mut line).unwrap();
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 10,
        all: false,
    });
    let mut line = [0; 7];
    out.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"got it\n");
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 9,
        all: false,
    });
    host.expect_exit(
        ProcessId::INIT,
        ExitStatus::Signal {
            signal: 9,
            out_of_memory: false,
        },
    );
    host.close();
}

fn a_signal_to_all_reaches_every_process() {
    let mut host = Host::new();
    let [_, mut out, _] = host.run(
        "(trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.05; done) & trap : USR1; wait; wait; exit 5",
    );
    let mut line = [0; 6];
    out.read_exact(&mut line).unwrap();
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 10,
        all: true,
    });
    assert_eq!(read_all(&mut out), "child\n");
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(5));
    host.close();
}

fn failure(host: &mut Host, process: ProcessId) -> String {
    match host.receive() {
        Some(GuestMessage::Failed {
            process: about,
            message,
        }) if about == process => message,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn a_container_that_cannot_be_built_is_explained() {
    let mut host = Host::new();
    host.hello();
    let mut spec = host.spec("true");
    spec.root.path = "/no/such/root".into();
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    let reason = failure(&mut host, ProcessId::INIT);
    assert!(
        reason.starts_with(r#"cannot mount the root filesystem "/no/such/root": open it: No such file"#),
        "{reason}"
    );
    host.close();
}

fn a_missing_program_is_explained_before_start() {
    let mut host = Host::new();
    host.hello();
    let mut spec = host.spec("");
    spec.process.args = vec!["nonesuch".into()];
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    assert_eq!(
        failure(&mut host, ProcessId::INIT),
        r#"exec: "nonesuch": executable file not found in $PATH"#
    );
    host.close();
}

fn a_container_killed_before_start_is_no_success() {
    let mut host = Host::new();
    host.hello();
    let spec = host.spec("true");
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    host.expect(&GuestMessage::Prepared);
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 9,
        all: false,
    });
    assert_eq!(
        failure(&mut host, ProcessId::INIT),
        "the process was killed while it was set up"
    );
    host.close();
}

fn requests_out_of_order_are_refused() {
    let mut host = Host::new();
    host.hello();
    host.send(&HostMessage::Start);
    assert_eq!(
        failure(&mut host, ProcessId::INIT),
        "there is no container to start"
    );
    let further = ProcessId(3);
    host.send(&HostMessage::Exec {
        process: further,
        spec: Box::new(process("true")),
    });
    assert_eq!(failure(&mut host, further), "the container is not running");
    host.send(&HostMessage::Signal {
        process: further,
        signal: 1,
        all: false,
    });
    assert_eq!(failure(&mut host, further), "there is no process 3");
    let spec = host.spec("sleep 9");
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec.clone()),
        cgroup: GuestCgroup::default(),
    });
    host.expect(&GuestMessage::Prepared);
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    assert_eq!(
        failure(&mut host, ProcessId::INIT),
        "there is a container already"
    );
    host.send(&HostMessage::Start);
    host.expect(&GuestMessage::Started {
        process: ProcessId::INIT,
    });
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 99,
        all: false,
    });
    assert!(failure(&mut host, ProcessId::INIT).starts_with("cannot send signal 99"));
    host.close();
}

const SIZE: u64 = 100 << 20;

/// Bytes that depend on their place, so that none can be lost, doubled or moved unnoticed.
fn byte_at(place: u64) -> u8 {
    let mixed = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56).to_le_bytes()[0]
}

fn hundred_mebibytes_pass_unchanged() {
    let mut host = Host::new();
    let [mut stdin, mut out, _err] = host.run("cat");
    // a process of its own writes, since this one has a single thread and both sides push back
    if let Cloned::Child = clone_process(&CloneRequest::default()).unwrap() {
        let mut block = vec![0; 1 << 16];
        for start in (0..SIZE).step_by(block.len()) {
            (start..)
                .zip(&mut block)
                .for_each(|(place, byte)| *byte = byte_at(place));
            stdin.write_all(&block).unwrap();
        }
        stdin.shutdown(Shutdown::Write).unwrap();
        std::process::exit(0);
    }
    let (mut place, mut block) = (0, vec![0; 1 << 16]);
    loop {
        let read = out.read(&mut block).unwrap();
        if read == 0 {
            break;
        }
        for &byte in &block[..read] {
            assert_eq!(byte, byte_at(place), "byte {place}");
            place += 1;
        }
    }
    assert_eq!(place, SIZE);
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

fn standard_error_is_a_stream_of_its_own() {
    let mut host = Host::new();
    let [_, mut out, mut err] = host.run("echo out; echo err >&2; echo again > /proc/self/fd/1");
    assert_eq!(
        (read_all(&mut out), read_all(&mut err)),
        ("out\nagain\n".into(), "err\n".into())
    );
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

fn the_end_of_input_is_seen() {
    let mut host = Host::new();
    let [mut stdin, mut out, _] = host.run("wc -c; echo done");
    stdin.write_all(b"12345").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut out), "5\ndone\n");
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

fn the_end_of_output_is_seen_before_the_exit() {
    let mut host = Host::new();
    let [stdin, mut out, _] = host.run("echo bye; exec >&- 2>&-; read line; exit 4");
    assert_eq!(
        read_all(&mut out),
        "bye\n",
        "the last writer is gone, though the workload runs on"
    );
    drop(stdin);
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(4));
    host.close();
}

fn output_of_a_workload_that_is_gone_waits_for_the_host() {
    let mut host = Host::new();
    // more than socket and relay hold, so that the pipe is full when the workload ends
    let [_, mut out, _] = host.run("head -c 400000 /proc/self/exe | tr -c x x");
    std::thread::sleep(Duration::from_millis(200));
    let text = read_all(&mut out);
    assert_eq!(text.len(), 400_000);
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

fn streams_may_connect_before_the_container_is_asked_for() {
    let mut host = Host::new();
    let [_, mut out, _] = host.streams(ProcessId::INIT);
    std::thread::sleep(Duration::from_millis(50));
    host.hello();
    let spec = host.spec("echo early");
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    host.expect(&GuestMessage::Prepared);
    host.send(&HostMessage::Start);
    host.expect(&GuestMessage::Started {
        process: ProcessId::INIT,
    });
    assert_eq!(read_all(&mut out), "early\n");
    // nobody came for its standard error, whose end is all there was to say
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

fn a_stream_without_a_header_is_dropped() {
    let mut host = Host::new();
    host.hello();
    let mut stream = host.stream(ProcessId(1), Stream::Stdin);
    stream.write_all(&[0xff; 64]).unwrap();
    let mut damaged = host.stream(ProcessId(2), Stream::Stdin);
    drop(stream);
    // a frame of 4 GiB, where a header is a few bytes
    let mut huge = host.raw_stream();
    huge.write_all(&[0xff; 64]).unwrap();
    let mut byte = [0];
    let closed = huge.read(&mut byte);
    assert!(
        matches!(&closed, Ok(0)) || closed.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    );
    damaged.write_all(b"waits for its process").unwrap();
    host.hello();
    host.close();
}

fn a_background_process_dies_with_the_first() {
    let mut host = Host::new();
    let before = Instant::now();
    let [_, mut out, _] = host.run("sleep 600 & echo started");
    assert_eq!(read_all(&mut out), "started\n");
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    assert!(before.elapsed() < Duration::from_secs(30));
    host.close();
}

fn a_terminal_carries_both_directions_and_its_size() {
    let mut host = Host::new();
    host.hello();
    let mut spec = host.spec("stty -echo; stty size; read line; stty size; echo \"<$line>\"; tty");
    spec.process.terminal = Some(TerminalSpec {
        rows: 30,
        columns: 90,
    });
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup: GuestCgroup::default(),
    });
    let mut terminal = host.stream(ProcessId::INIT, Stream::Terminal);
    host.expect(&GuestMessage::Prepared);
    host.send(&HostMessage::Start);
    host.expect(&GuestMessage::Started {
        process: ProcessId::INIT,
    });
    let mut size = [0; 7];
    terminal.read_exact(&mut size).unwrap();
    assert_eq!(&size, b"30 90\r\n");
    host.send(&HostMessage::Resize {
        process: ProcessId::INIT,
        rows: 11,
        columns: 22,
    });
    std::thread::sleep(Duration::from_millis(100));
    terminal.write_all(b"typed\n").unwrap();
    assert_eq!(read_all(&mut terminal), "11 22\r\n<typed>\r\n/dev/pts/0\r\n");
    host.expect_exit(ProcessId::INIT, ExitStatus::Code(0));
    host.close();
}

/// Starts a further process and connects its streams.
fn exec(host: &mut Host, id: u32, script: &str) -> [UnixStream; 3] {
    let id = ProcessId(id);
    let streams = host.streams(id);
    host.send(&HostMessage::Exec {
        process: id,
        spec: Box::new(process(script)),
    });
    host.expect(&GuestMessage::Started { process: id });
    streams
}

fn a_further_process_runs_in_the_container() {
    let mut host = Host::new();
    let _init = host.run("hostname inside; mkdir /made; sleep 600");
    std::thread::sleep(Duration::from_millis(200));
    let [_, mut out, _] = exec(
        &mut host,
        1,
        "hostname; ls -d /made; test $$ -gt 1 && echo not first; cat /proc/1/comm; tail -1 /proc/self/cgroup; exit 9",
    );
    assert_eq!(read_all(&mut out), "inside\n/made\nnot first\nsleep\n0::/\n");
    host.expect_exit(ProcessId(1), ExitStatus::Code(9));
    let [_, mut out, _] = exec(&mut host, 2, "kill -9 $$");
    assert_eq!(read_all(&mut out), "");
    host.expect_exit(
        ProcessId(2),
        ExitStatus::Signal {
            signal: 9,
            out_of_memory: false,
        },
    );
    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 9,
        all: true,
    });
    host.expect_exit(
        ProcessId::INIT,
        ExitStatus::Signal {
            signal: 9,
            out_of_memory: false,
        },
    );
    host.close();
}

fn a_further_process_has_streams_and_a_terminal_of_its_own() {
    let mut host = Host::new();
    let [_, mut init_out, _] = host.run("sleep 600");
    let [mut stdin, mut out, mut err] = exec(&mut host, 1, "cat; echo err >&2");
    stdin.write_all(b"through").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        (read_all(&mut out), read_all(&mut err)),
        ("through".into(), "err\n".into())
    );
    host.expect_exit(ProcessId(1), ExitStatus::Code(0));

    let mut spec = process("tty; stty size");
    spec.terminal = Some(TerminalSpec { rows: 5, columns: 6 });
    let mut terminal = host.stream(ProcessId(2), Stream::Terminal);
    host.send(&HostMessage::Exec {
        process: ProcessId(2),
        spec: Box::new(spec),
    });
    host.expect(&GuestMessage::Started {
        process: ProcessId(2),
    });
    assert_eq!(read_all(&mut terminal), "/dev/pts/0\r\n5 6\r\n");
    host.expect_exit(ProcessId(2), ExitStatus::Code(0));

    host.send(&HostMessage::Signal {
        process: ProcessId::INIT,
        signal: 9,
        all: false,
    });
    host.expect_exit(
        ProcessId::INIT,
        ExitStatus::Signal {
            signal: 9,
            out_of_memory: false,
        },
    );
    assert_eq!(read_all(&mut init_out), "");
    host.close();
}

fn a_further_process_that_is_missing_is_explained() {
    let mut host = Host::new();
    let _init = host.run("sleep 600");
    let mut spec = process("");
    spec.args = vec!["/nonesuch".into()];
    host.send(&HostMessage::Exec {
        process: ProcessId(1),
        spec: Box::new(spec),
    });
    let reason = failure(&mut host, ProcessId(1));
    assert!(
        reason.contains(r#"exec: "/nonesuch": no such file or directory"#),
        "{reason}"
    );
    // the container and the agent are none the worse
    let [_, mut out, _] = exec(&mut host, 2, "echo still");
    assert_eq!(read_all(&mut out), "still\n");
    host.expect_exit(ProcessId(2), ExitStatus::Code(0));
    host.close();
}

fn a_further_process_leaves_its_children_behind() {
    let mut host = Host::new();
    let _init = host.run("sleep 600");
    let [_, mut out, _] = exec(&mut host, 1, "(sleep 0.5; echo late) & echo soon");
    // its end does not wait for the child that holds its pipes
    host.expect_exit(ProcessId(1), ExitStatus::Code(0));
    assert_eq!(read_all(&mut out), "soon\nlate\n");
    host.close();
}

fn closing_the_control_stream_ends_the_agent() {
    let mut host = Host::new();
    let _streams = host.run("sleep 600");
    host.close();
}

fn a_damaged_control_stream_ends_the_agent() {
    let mut host = Host::new();
    host.hello();
    host.send_raw(&[0xff; 16]);
    assert_eq!(host.receive(), None);
    assert!(
        host.notes()
            .iter()
            .any(|note| note.contains("the control stream is damaged"))
    );
    host.close();
}

fn a_second_control_stream_is_closed() {
    let mut host = Host::new();
    host.hello();
    let mut second = host.second_control();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    host.hello();
    host.close();
}

fn nothing_is_left_unreaped() {
    let mut host = Host::new();
    let _init = host.run("sleep 600");
    for id in 1..=5 {
        let [_, mut out, _] = exec(&mut host, id, "sh -c 'sleep 0.01 & exit 3'; echo done");
        assert_eq!(read_all(&mut out), "done\n");
        host.expect_exit(ProcessId(id), ExitStatus::Code(0));
    }
    assert_eq!(host.children(), 1, "only the container's first process");
    host.close();
}

fn a_limit_that_is_refused_is_named() {
    let mut host = Host::new();
    host.hello();
    let spec = host.spec("true");
    let cgroup = GuestCgroup {
        writes: vec![("cgroup.type".into(), "nonsense".into())],
    };
    host.send(&HostMessage::Prepare {
        spec: Box::new(spec),
        cgroup,
    });
    let reason = failure(&mut host, ProcessId::INIT);
    assert!(
        reason.starts_with(r#"cannot write "nonsense" to cgroup.type of the container's cgroup: "#),
        "{reason}"
    );
    host.close();
}
