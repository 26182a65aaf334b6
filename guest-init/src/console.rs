//! The guest's console, which the host keeps and shows when a VM fails: the only place that guest-init
//! prints to.

use std::{fs::OpenOptions, io::Write};

/// Writes a line to the kernel's log, and so to the console; to the console itself where there is none.
pub fn say(text: &str) {
    // one write is one record; `<2>` is the level "critical", shown even with `quiet`
    let line = format!("<2>guest-init: {}\n", text.replace('\n', " "));
    let written = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        // nobody is left to tell when this fails too
        let _ = OpenOptions::new()
            .write(true)
            .open("/dev/console")
            .and_then(|mut console| console.write_all(&line.as_bytes()[3..]));
    }
}

/// Says that this program is of no use anywhere but in a guest: on a host it would mount and reset.
pub fn refuse() {
    // nobody is left to tell when standard error is closed
    let _ = std::io::stderr()
        .write_all(b"guest-init is the first process of a moat microVM and runs nowhere else\n");
}
