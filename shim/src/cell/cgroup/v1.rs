//! cgroup v1 (kernel `admin-guide/cgroup-v1`): what each limit is called there.

use std::path::Path;

use moat_protocol::workload_spec::CgroupMount;

use super::devices::{Kind, Rule, access};
use super::{CgroupError, Directory, Missing, Setting, read, write};
use crate::bundle::resources::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// The settings of a container, in the order of writing.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, CgroupError> {
    if !resources.unified.is_empty() {
        return Err(CgroupError::Unsupported {
            field: "unified".into(),
            reason: "this host has cgroup v1",
        });
    }
    let mut settings = memory(&resources.memory);
    settings.extend(cpu(&resources.cpu)?);
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        let value = if limit < 0 {
            "max".to_owned()
        } else {
            limit.to_string()
        };
        settings.push(Setting::new("pids", "pids.max", value));
    }
    settings.extend(block_io(&resources.block_io));
    for limit in &resources.hugepage_limits {
        let size = super::v2::page_size(&limit.page_size)?;
        settings.push(Setting::new(
            "hugetlb",
            format!("hugetlb.{size}.limit_in_bytes"),
            limit.limit,
        ));
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        settings.push(Setting::new("hugetlb", reserved, limit.limit).or(Missing::Skip));
    }
    if let Some(class) = resources.network.class_id {
        settings.push(Setting::new("net_cls", "net_cls.classid", class));
    }
    for priority in &resources.network.priorities {
        let value = format!("{} {}", priority.name, priority.priority);
        settings.push(Setting::new("net_prio", "net_prio.ifpriomap", value));
    }
    settings.extend(super::v2::rdma(resources));
    Ok(settings)
}

fn memory(memory: &Memory) -> Vec<Setting> {
    let mut settings = Vec::new();
    let limit = memory
        .limit
        .map(|limit| Setting::new("memory", "memory.limit_in_bytes", limit));
    let swap = memory
        .swap
        .map(|swap| Setting::new("memory", "memory.memsw.limit_in_bytes", swap));
    // The kernel keeps limit <= memory+swap at every moment: lowering starts with the first, lifting
    // the limit with the second.
    if memory.limit == Some(-1) {
        settings.extend(swap.into_iter().chain(limit));
    } else {
        settings.extend(limit.into_iter().chain(swap));
    }
    if let Some(reservation) = memory.reservation {
        settings.push(Setting::new("memory", "memory.soft_limit_in_bytes", reservation));
    }
    if let Some(tcp) = memory.kernel_tcp {
        settings.push(Setting::new("memory", "memory.kmem.tcp.limit_in_bytes", tcp));
    }
    if let Some(swappiness) = memory.swappiness {
        settings.push(Setting::new("memory", "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer == Some(true) {
        settings.push(Setting::new("memory", "memory.oom_control", 1));
    }
    settings
}

fn cpu(cpu: &Cpu) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        settings.push(Setting::new("cpu", "cpu.shares", shares));
    }
    // The period first: a quota is checked against it.
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        settings.push(Setting::new("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        settings.push(Setting::new("cpu", "cpu.cfs_quota_us", quota));
    }
    if let Some(burst) = cpu.burst {
        settings.push(Setting::new("cpu", "cpu.cfs_burst_us", burst));
    }
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        settings.push(Setting::new("cpu", "cpu.rt_period_us", period));
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        settings.push(Setting::new("cpu", "cpu.rt_runtime_us", runtime));
    }
    if let Some(idle) = cpu.idle {
        settings.push(Setting::new("cpu", "cpu.idle", idle));
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            settings.push(Setting::new("cpuset", file, super::v2::cpu_list(value)?));
        }
    }
    Ok(settings)
}

fn block_io(io: &BlockIo) -> Vec<Setting> {
    let mut settings = Vec::new();
    let bfq = |file: &'static str, weight: String| Missing::Instead {
        file: file.into(),
        value: weight,
    };
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        let setting = Setting::new("blkio", "blkio.weight", weight);
        settings.push(setting.or(bfq("blkio.bfq.weight", weight.to_string())));
    }
    if let Some(weight) = io.leaf_weight.filter(|weight| *weight != 0) {
        settings.push(Setting::new("blkio", "blkio.leaf_weight", weight));
    }
    for device in &io.weight_device {
        let line = |weight: u16| format!("{}:{} {weight}", device.major, device.minor);
        if let Some(weight) = device.weight.map(line) {
            let setting = Setting::new("blkio", "blkio.weight_device", &weight);
            settings.push(setting.or(bfq("blkio.bfq.weight_device", weight)));
        }
        if let Some(weight) = device.leaf_weight.map(line) {
            settings.push(Setting::new("blkio", "blkio.leaf_weight_device", weight));
        }
    }
    let throttles: [(&'static str, &[ThrottleDevice]); 4] = [
        ("blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ];
    for (file, devices) in throttles {
        for device in devices {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            settings.push(Setting::new("blkio", file, value));
        }
    }
    settings
}

/// Rules as lines of `devices.allow` and `devices.deny`.
pub(super) fn device_settings(rules: &[Rule]) -> Vec<Setting> {
    let line = |rule: &Rule| {
        let kind = match rule.kind {
            Kind::All => "a",
            Kind::Block => "b",
            Kind::Character => "c",
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let letters = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MKNOD, 'm')];
        let access: String = letters
            .iter()
            .filter(|(bit, _)| rule.access & bit != 0)
            .map(|(_, l)| l)
            .collect();
        format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
    };
    rules
        .iter()
        .map(|rule| {
            let file = if rule.allow {
                "devices.allow"
            } else {
                "devices.deny"
            };
            Setting::new("devices", file, line(rule))
        })
        .collect()
}

/// A new cpuset is empty and takes no process before it has processors and memory nodes: it gets those
/// of its parent, down from the mount point.
pub(super) fn inherit_cpuset(mount: &Path, path: &Path) -> Result<(), CgroupError> {
    let Ok(below) = path.strip_prefix(mount) else {
        return Ok(());
    };
    let mut parent = mount.to_owned();
    for part in below {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read(&child.join(file))?.trim().is_empty() {
                write(&child.join(file), read(&parent.join(file))?.trim())?;
            }
        }
        parent = child;
    }
    Ok(())
}

/// The container's own directories, each below the name that its hierarchy has on the host, and links
/// for controllers that share one. The cgroup2 tree of a hybrid host is not shown, as runc doesn't.
pub(super) fn mount_source(directories: &[Directory]) -> CgroupMount {
    let mut hierarchies = Vec::new();
    let mut links = Vec::new();
    for directory in directories
        .iter()
        .filter(|directory| !directory.controllers.is_empty())
    {
        let Some(name) = directory
            .mount
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
        else {
            continue;
        };
        for controller in directory
            .controllers
            .iter()
            .filter(|c| !c.starts_with("name=") && **c != name)
        {
            links.push((controller.clone(), name.clone()));
        }
        hierarchies.push((name, directory.path.to_string_lossy().into_owned()));
    }
    CgroupMount::V1 { hierarchies, links }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn lines(resources: serde_json::Value) -> Vec<String> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let settings = settings(&resources).unwrap();
        settings
            .iter()
            .map(|s| format!("{}/{}={}", s.controller, s.file, s.value))
            .collect()
    }

    #[test]
    fn memory_limits_are_written_so_that_each_step_is_valid() {
        let lowered = lines(json!({"memory": {"limit": 100, "swap": 200, "reservation": 50}}));
        assert_eq!(
            lowered,
            [
                "memory/memory.limit_in_bytes=100",
                "memory/memory.memsw.limit_in_bytes=200",
                "memory/memory.soft_limit_in_bytes=50"
            ]
        );
        let lifted = lines(json!({"memory": {"limit": -1, "swap": -1}}));
        assert_eq!(
            lifted,
            [
                "memory/memory.memsw.limit_in_bytes=-1",
                "memory/memory.limit_in_bytes=-1"
            ]
        );
    }

    #[test]
    fn cpu_limits_have_the_period_before_the_quota() {
        assert_eq!(
            lines(
                json!({"cpu": {"shares": 512, "quota": 5000, "period": 10000, "cpus": "0-1", "mems": "0"}})
            ),
            [
                "cpu/cpu.shares=512",
                "cpu/cpu.cfs_period_us=10000",
                "cpu/cpu.cfs_quota_us=5000",
                "cpuset/cpuset.cpus=0-1",
                "cpuset/cpuset.mems=0"
            ]
        );
    }

    #[test]
    fn unlimited_processes_are_max() {
        assert_eq!(lines(json!({"pids": {"limit": -1}})), ["pids/pids.max=max"]);
        assert_eq!(lines(json!({"pids": {"limit": 7}})), ["pids/pids.max=7"]);
        assert!(lines(json!({"pids": {"limit": 0}})).is_empty());
    }

    #[test]
    fn block_devices_are_throttled_one_line_each() {
        let io = json!({"blockIO": {"weight": 10, "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 5}]}});
        assert_eq!(
            lines(io),
            [
                "blkio/blkio.weight=10",
                "blkio/blkio.throttle.read_iops_device=8:0 5"
            ]
        );
    }

    #[test]
    fn unified_settings_need_v2() {
        let resources: Resources = serde_json::from_value(json!({"unified": {"memory.high": "1"}})).unwrap();
        assert!(settings(&resources).is_err());
    }

    #[test]
    fn device_rules_are_lines() {
        let rules = super::super::devices::rules(&[]).unwrap();
        let lines: Vec<_> = device_settings(&rules)
            .into_iter()
            .map(|s| format!("{} {}", s.file, s.value))
            .collect();
        assert_eq!(lines[0], "devices.deny a *:* rwm");
        assert_eq!(lines[1], "devices.allow c *:* m");
        assert_eq!(lines[3], "devices.allow c 1:3 rwm");
    }

    #[test]
    fn joined_controllers_become_links() {
        let directory = |controllers: &[&str], name: &str| Directory {
            controllers: controllers.iter().map(|c| (*c).to_owned()).collect(),
            mount: PathBuf::from("/sys/fs/cgroup").join(name),
            path: PathBuf::from("/sys/fs/cgroup").join(name).join("c1"),
        };
        let directories = [
            directory(&[], "unified"),
            directory(&["name=systemd"], "systemd"),
            directory(&["cpu", "cpuacct"], "cpu,cpuacct"),
        ];
        let CgroupMount::V1 { hierarchies, links } = mount_source(&directories) else {
            panic!()
        };
        assert_eq!(hierarchies.len(), 2);
        assert_eq!(
            hierarchies[1],
            ("cpu,cpuacct".into(), "/sys/fs/cgroup/cpu,cpuacct/c1".into())
        );
        assert_eq!(
            links,
            [
                ("cpu".into(), "cpu,cpuacct".into()),
                ("cpuacct".into(), "cpu,cpuacct".into())
            ]
        );
    }
}
