//! cgroup v2 (kernel `admin-guide/cgroup-v2.rst`): what each limit is called there, and how values of
//! the configuration, which are those of v1, are converted.

use std::path::Path;

use super::devices::Rule;
use super::{CgroupError, Missing, Setting, bpf, read, write};
use crate::bundle::resources::{BlockIo, Cpu, Memory, Resources};

/// The settings of a container, in the order of writing.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, CgroupError> {
    if resources.network.class_id.is_some_and(|class| class != 0) || !resources.network.priorities.is_empty()
    {
        return Err(unsupported("network", "cgroup v2 has no network classes"));
    }
    let mut settings = memory(&resources.memory)?;
    settings.extend(cpu(&resources.cpu)?);
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        settings.push(Setting::new("", "pids.max", or_max(limit)));
    }
    settings.extend(block_io(&resources.block_io)?);
    for limit in &resources.hugepage_limits {
        let size = page_size(&limit.page_size)?;
        settings.push(Setting::new("", format!("hugetlb.{size}.max"), limit.limit));
        settings.push(Setting::new("", format!("hugetlb.{size}.rsvd.max"), limit.limit).or(Missing::Skip));
    }
    settings.extend(rdma(resources));
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(unsupported("unified", "its keys are file names of the cgroup"));
        }
        settings.push(Setting::new("", file.clone(), value));
    }
    Ok(settings)
}

fn unsupported(field: &'static str, reason: &'static str) -> CgroupError {
    CgroupError::Unsupported {
        field: field.into(),
        reason,
    }
}

fn or_max(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

fn memory(memory: &Memory) -> Result<Vec<Setting>, CgroupError> {
    if memory.swappiness.is_some() {
        return Err(unsupported("memory.swappiness", "cgroup v2 has no swappiness"));
    }
    if memory.disable_oom_killer == Some(true) {
        return Err(unsupported(
            "memory.disableOOMKiller",
            "cgroup v2 always has its OOM killer",
        ));
    }
    if memory.kernel_tcp.is_some_and(|limit| limit > 0) {
        return Err(unsupported(
            "memory.kernelTCP",
            "cgroup v2 counts it with all other memory",
        ));
    }
    let mut settings = Vec::new();
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        settings.push(Setting::new("", "memory.max", or_max(limit)));
    }
    if let Some(swap) = swap(limit, memory.swap)? {
        // Without swap accounting the file is missing, and there is no swap to limit.
        let missing = if swap == "max" || swap == "0" {
            Missing::Skip
        } else {
            Missing::Fail
        };
        settings.push(Setting::new("", "memory.swap.max", swap).or(missing));
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        settings.push(Setting::new("", "memory.low", or_max(reservation)));
    }
    Ok(settings)
}

/// The configuration counts memory and swap together, v2 swap alone.
fn swap(limit: Option<i64>, both: Option<i64>) -> Result<Option<String>, CgroupError> {
    match (limit, both) {
        (_, None | Some(0)) => Ok(None),
        (_, Some(both)) if both < 0 => Ok(Some("max".to_owned())),
        (None, Some(_)) => Err(unsupported("memory.swap", "it needs memory.limit")),
        (Some(limit), Some(_)) if limit < 0 => Err(unsupported("memory.swap", "it needs memory.limit")),
        (Some(limit), Some(both)) if both < limit => Err(unsupported(
            "memory.swap",
            "it counts memory too and can't be below memory.limit",
        )),
        (Some(limit), Some(both)) => Ok(Some((both - limit).to_string())),
    }
}

fn cpu(cpu: &Cpu) -> Result<Vec<Setting>, CgroupError> {
    if cpu.realtime_runtime.is_some_and(|runtime| runtime != 0)
        || cpu.realtime_period.is_some_and(|period| period != 0)
    {
        return Err(unsupported(
            "cpu.realtimeRuntime",
            "cgroup v2 has no realtime limits",
        ));
    }
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle {
        settings.push(Setting::new("", "cpu.idle", idle));
    }
    // An idle cgroup has no weight to set.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        settings.push(Setting::new("", "cpu.weight", weight_of_shares(shares)));
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu
            .quota
            .filter(|quota| *quota > 0)
            .map_or_else(|| "max".to_owned(), |q| q.to_string());
        let period = cpu.period.filter(|period| *period != 0).unwrap_or(DEFAULT_PERIOD);
        settings.push(Setting::new("", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst {
        settings.push(Setting::new("", "cpu.max.burst", burst));
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if !value.is_empty() {
            settings.push(Setting::new("", file, cpu_list(value)?));
        }
    }
    Ok(settings)
}

/// Microseconds; the kernel's own.
pub(super) const DEFAULT_PERIOD: u64 = 100_000;

/// Shares run from 2 to 262144, weights from 1 to 10000 (the linear map that runc and crun share).
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

fn block_io(io: &BlockIo) -> Result<Vec<Setting>, CgroupError> {
    if io.leaf_weight.is_some_and(|weight| weight != 0)
        || io.weight_device.iter().any(|d| d.leaf_weight.is_some())
    {
        return Err(unsupported("blockIO.leafWeight", "cgroup v2 has no leaf weights"));
    }
    let mut settings = Vec::new();
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        settings.push(io_weight(String::new(), weight));
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight {
            settings.push(io_weight(format!("{}:{} ", device.major, device.minor), weight));
        }
    }
    let throttles = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for device in devices {
            let value = format!("{}:{} {key}={}", device.major, device.minor, device.rate);
            settings.push(Setting::new("", "io.max", value));
        }
    }
    Ok(settings)
}

/// BFQ's weights run from 1 to 1000 as the configuration's, those of io.weight from 1 to 10000.
fn io_weight(device: String, weight: u16) -> Setting {
    let converted = 1 + (u64::from(weight.max(10)) - 10) * 9_999 / 990;
    let instead = Missing::Instead {
        file: "io.weight".into(),
        value: format!("{device}{converted}"),
    };
    Setting::new("", "io.bfq.weight", format!("{device}{weight}")).or(instead)
}

pub(super) fn rdma(resources: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (device, limit) in &resources.rdma {
        let mut value = device.clone();
        for (key, number) in [
            ("hca_handle", limit.hca_handles),
            ("hca_object", limit.hca_objects),
        ] {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        settings.push(Setting::new("rdma", "rdma.max", value));
    }
    settings
}

/// A page size becomes part of a file name.
pub(super) fn page_size(size: &str) -> Result<&str, CgroupError> {
    if !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(size);
    }
    Err(unsupported(
        "hugepageLimits",
        "a page size is written such as 2MB",
    ))
}

/// Lists of processors and nodes are digits, commas and dashes.
pub(super) fn cpu_list(list: &str) -> Result<&str, CgroupError> {
    if list
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-' | b' '))
    {
        return Ok(list);
    }
    Err(unsupported(
        "cpu.cpus",
        "a list of processors is written such as 0-3,7",
    ))
}

/// Lets the cgroups on the way down have all controllers there are. One that can't be enabled (a
/// cgroup with processes in it) is found out when a limit needs it.
pub(super) fn enable_controllers(mount: &Path, path: &Path) -> Result<(), CgroupError> {
    let Ok(below) = path.strip_prefix(mount) else {
        return Ok(());
    };
    let mut parent = mount.to_owned();
    let mut parts = below.iter().peekable();
    while let Some(part) = parts.next() {
        let available = read(&parent.join("cgroup.controllers"))?;
        let control = parent.join("cgroup.subtree_control");
        let enabled = read(&control)?;
        let missing: Vec<String> = available
            .split_whitespace()
            .filter(|controller| !enabled.split_whitespace().any(|known| known == *controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        if !missing.is_empty() && write(&control, &missing.join(" ")).is_err() {
            // One that is refused refuses all that are written with it.
            for controller in &missing {
                let _one_by_one = write(&control, controller);
            }
        }
        if parts.peek().is_none() {
            break;
        }
        parent.push(part);
        match std::fs::create_dir(&parent) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(CgroupError::Create { path: parent, source }),
        }
    }
    Ok(())
}

/// Attaches the device filter. Without privileges there is none: device nodes can't be made then.
pub(super) fn filter_devices(path: &Path, rules: &[Rule]) -> Result<(), CgroupError> {
    if matches!(rules, [only] if only.allow) || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bpf::attach(path, &bpf::program(rules)).map_err(|source| CgroupError::DeviceFilter {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings_of(resources: serde_json::Value) -> Result<Vec<String>, String> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let settings = settings(&resources).map_err(|error| error.to_string())?;
        Ok(settings
            .iter()
            .map(|s| format!("{}={}", s.file, s.value))
            .collect())
    }

    fn lines(resources: serde_json::Value) -> Vec<String> {
        settings_of(resources).unwrap()
    }

    #[test]
    fn swap_is_counted_without_memory() {
        assert_eq!(
            lines(json!({"memory": {"limit": 100, "swap": 150, "reservation": 20}})),
            ["memory.max=100", "memory.swap.max=50", "memory.low=20"]
        );
        assert_eq!(
            lines(json!({"memory": {"limit": -1, "swap": -1}})),
            ["memory.max=max", "memory.swap.max=max"]
        );
    }

    #[test]
    fn swap_without_or_below_the_limit_is_refused() {
        assert!(settings_of(json!({"memory": {"swap": 150}})).is_err());
        assert!(settings_of(json!({"memory": {"limit": 200, "swap": 150}})).is_err());
    }

    #[test]
    fn shares_become_weights_at_both_ends() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn quota_and_period_share_a_file() {
        assert_eq!(lines(json!({"cpu": {"quota": 5000}})), ["cpu.max=5000 100000"]);
        assert_eq!(
            lines(json!({"cpu": {"quota": -1, "period": 20000}})),
            ["cpu.max=max 20000"]
        );
        assert_eq!(lines(json!({"cpu": {"period": 20000}})), ["cpu.max=max 20000"]);
    }

    #[test]
    fn block_io_is_converted() {
        assert_eq!(
            lines(json!({"blockIO": {"weight": 1000}})),
            ["io.bfq.weight=1000"]
        );
        let Missing::Instead { value, .. } = io_weight(String::new(), 1000).missing else {
            panic!()
        };
        assert_eq!(value, "10000");
        let throttle = json!({"blockIO": {"throttleWriteBpsDevice": [{"major": 8, "minor": 16, "rate": 9}]}});
        assert_eq!(lines(throttle), ["io.max=8:16 wbps=9"]);
    }

    #[test]
    fn unified_settings_come_last_and_stay_in_the_cgroup() {
        assert_eq!(
            lines(json!({"memory": {"limit": 5}, "unified": {"memory.high": "3"}})),
            ["memory.max=5", "memory.high=3"]
        );
        assert!(settings_of(json!({"unified": {"../memory.max": "3"}})).is_err());
    }

    #[test]
    fn what_v2_does_not_have_is_refused_by_name() {
        for (resources, field) in [
            (json!({"memory": {"swappiness": 60}}), "memory.swappiness"),
            (
                json!({"memory": {"disableOOMKiller": true}}),
                "memory.disableOOMKiller",
            ),
            (json!({"cpu": {"realtimeRuntime": 5}}), "cpu.realtimeRuntime"),
            (json!({"network": {"classID": 5}}), "network"),
            (json!({"blockIO": {"leafWeight": 5}}), "blockIO.leafWeight"),
        ] {
            assert!(settings_of(resources).unwrap_err().contains(field), "{field}");
        }
        assert!(settings_of(json!({"memory": {"disableOOMKiller": false}})).is_ok());
    }

    #[test]
    fn a_page_size_is_no_path() {
        assert_eq!(
            lines(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]})),
            ["hugetlb.2MB.max=4", "hugetlb.2MB.rsvd.max=4"]
        );
        assert!(settings_of(json!({"hugepageLimits": [{"pageSize": "../x", "limit": 4}]})).is_err());
    }
}
