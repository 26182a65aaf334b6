//! An init that looks at the machine of `boot` and reports by marks (0x20 + check when it holds,
//! 0x40 + check when not) and on the console. Build it static:
//!
//!     cargo rustc -p moat-vmm --example probe-init -- -C target-feature=+crt-static

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

const BOOT_CLOCK_PORT: u64 = 0x3e0;

fn mark(number: u8) {
    if let Ok(port) = File::options().write(true).open("/dev/port") {
        let _ = port.write_at(&[number], BOOT_CLOCK_PORT);
    }
}

fn words(path: &str) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

fn parameter(name: &str) -> Option<String> {
    words("/proc/cmdline")
        .iter()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// As many processors as the command line says, all of them at work.
fn cpus() -> bool {
    let expected = parameter("probe.cpus").and_then(|text| text.parse().ok());
    let found = fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .matches("processor\t")
        .count();
    Some(found) == expected.or(Some(found))
        && std::thread::scope(|scope| {
            let threads: Vec<_> = (0..found).map(|i| scope.spawn(move || i * 2)).collect();
            threads
                .into_iter()
                .enumerate()
                .all(|(i, thread)| thread.join().is_ok_and(|sum| sum == 2 * i))
        })
}

/// Memory within 1/8 of what the command line says.
fn memory() -> bool {
    let total = words("/proc/meminfo")
        .get(1)
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024;
    match parameter("probe.mib").and_then(|text| text.parse::<u64>().ok()) {
        Some(expected) => total <= expected && total * 8 >= expected * 6,
        None => total > 0,
    }
}

fn clock() -> bool {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    matches!(
        fs::read_to_string(source).as_deref().map(str::trim),
        Ok("kvm-clock" | "tsc")
    )
}

fn rng() -> bool {
    let mut bytes = [0; 64];
    match File::open("/dev/hwrng") {
        Ok(mut file) => file.read_exact(&mut bytes).is_ok() && bytes != [0; 64],
        Err(_) => fs::read_dir("/sys/bus/virtio/drivers/virtio_rng").is_ok_and(|entries| entries.count() > 0),
    }
}

/// Reads what is there, writes, reads back past the page cache.
fn disk() -> bool {
    let Ok(disk) = File::options().read(true).write(true).open("/dev/vda") else {
        return false;
    };
    let mut seen = [0; 9];
    let read = disk.read_exact_at(&mut seen, 1 << 19).is_ok() && &seen == b"moat disk";
    let data = vec![0x5a; 300 << 10];
    let written = disk.write_all_at(&data, 4096).is_ok() && disk.sync_all().is_ok();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    let mut back = vec![0; data.len()];
    read && written && disk.read_exact_at(&mut back, 4096).is_ok() && back == data
}

fn read_only_disk() -> bool {
    let flag = fs::read_to_string("/sys/block/vdb/ro").unwrap_or_default();
    let id = fs::read_to_string("/sys/block/vdb/serial").unwrap_or_default();
    flag.trim() == "1" && id.trim() == "second"
}

/// Makes, fills, renames, lists and removes files of a tree, and sees a file of the host.
fn share() -> bool {
    if parameter("probe.share").is_none() {
        return true;
    }
    let work = || -> std::io::Result<bool> {
        fs::create_dir_all("/mnt")?;
        mount("share", "/mnt", "virtiofs", MountFlags::empty(), None)?;
        let host = fs::read_to_string("/mnt/host")?;
        fs::create_dir("/mnt/made")?;
        for i in 0..200u32 {
            fs::write(format!("/mnt/made/{i}"), i.to_string().repeat(1000))?;
        }
        fs::rename("/mnt/made/7", "/mnt/seven")?;
        fs::hard_link("/mnt/seven", "/mnt/eight")?;
        let large = vec![0x77; 3 << 20];
        fs::write("/mnt/large", &large)?;
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let listed = fs::read_dir("/mnt/made")?.count();
        let back = fs::read("/mnt/large")? == large && fs::read("/mnt/eight")? == "7".repeat(1000).as_bytes();
        fs::remove_file("/mnt/seven")?;
        Ok(host == "from the host" && listed == 199 && back)
    };
    work().unwrap_or_else(|error| {
        let _ = writeln!(std::io::stdout(), "share: {error}");
        false
    })
}

/// A name and what must hold.
type Check = (&'static str, fn() -> bool);

fn main() {
    for (source, target, kind) in [
        ("proc", "/proc", "proc"),
        ("sys", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
    ] {
        let _ = fs::create_dir(target);
        let _ = mount(source, target, kind, MountFlags::empty(), None);
    }
    mark(0x10);
    let mut console = std::io::stdout();
    let checks: [Check; 7] = [
        ("cpus", cpus),
        ("memory", memory),
        ("clock", clock),
        ("rng", rng),
        ("disk", disk),
        ("read-only disk", read_only_disk),
        ("share", share),
    ];
    let mut failed = 0;
    for (number, (name, check)) in (0u8..).zip(checks) {
        let good = check();
        failed += u32::from(!good);
        mark(if good { 0x20 } else { 0x40 } + number);
        let _ = writeln!(console, "probe: {name} {}", if good { "ok" } else { "FAILED" });
    }
    let _ = writeln!(console, "probe: {failed} failed");
    if parameter("probe.panic").is_some() {
        return; // init that ends makes the kernel panic
    }
    let _ = console.flush();
    let _ = reboot(RebootCommand::Restart);
}
