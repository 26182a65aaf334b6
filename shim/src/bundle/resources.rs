//! Limits of a container (config-linux.md "Control groups"), as the configuration writes them and as
//! the cgroup writes them out: the one part of config.json that needs no narrowing, since each field
//! ends as one line in one file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::nullable;

/// All limits; absent ones are left as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Device access rules, in order.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(default, deserialize_with = "nullable")]
    pub memory: Memory,
    /// Processor time.
    #[serde(default, deserialize_with = "nullable")]
    pub cpu: Cpu,
    /// Number of processes.
    #[serde(default, deserialize_with = "nullable")]
    pub pids: Pids,
    /// Block I/O.
    #[serde(rename = "blockIO", default, deserialize_with = "nullable")]
    pub block_io: BlockIo,
    /// Huge pages.
    #[serde(default, deserialize_with = "nullable")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Network classes.
    #[serde(default, deserialize_with = "nullable")]
    pub network: Network,
    /// RDMA devices.
    #[serde(default, deserialize_with = "nullable")]
    pub rdma: BTreeMap<String, Rdma>,
    /// cgroup v2 files and what to write to them.
    #[serde(default, deserialize_with = "nullable")]
    pub unified: BTreeMap<String, String>,
}

/// One rule of the device controller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `a`, `b` or `c`; all when absent.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    /// Major number; any when absent or negative.
    pub major: Option<i64>,
    /// Minor number, likewise.
    pub minor: Option<i64>,
    /// Some of `rwm`; all when absent.
    #[serde(default, deserialize_with = "nullable")]
    pub access: String,
}

/// Memory, in bytes; -1 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Limit.
    pub limit: Option<i64>,
    /// Soft limit.
    pub reservation: Option<i64>,
    /// Memory and swap together.
    pub swap: Option<i64>,
    /// Kernel memory, which no kernel limits any more.
    pub kernel: Option<i64>,
    /// Kernel memory of TCP (v1).
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100 (v1).
    pub swappiness: Option<u64>,
    /// Let processes wait instead of killing them (v1).
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    /// Refuse limits below the present usage; only of interest to `update`.
    pub check_before_update: Option<bool>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Relative weight, 2 to 262144.
    pub shares: Option<u64>,
    /// Microseconds in each period.
    pub quota: Option<i64>,
    /// Microseconds that may be saved up.
    pub burst: Option<u64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// Microseconds for realtime tasks (v1).
    pub realtime_runtime: Option<i64>,
    /// Microseconds (v1).
    pub realtime_period: Option<u64>,
    /// List of processors.
    #[serde(default, deserialize_with = "nullable")]
    pub cpus: String,
    /// List of memory nodes.
    #[serde(default, deserialize_with = "nullable")]
    pub mems: String,
    /// 1: only what is left over.
    pub idle: Option<i64>,
}

/// Number of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Pids {
    /// Limit; -1 is none. Zero is taken as unset, as runc does.
    pub limit: Option<i64>,
}

/// Block I/O.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Relative weight, 10 to 1000.
    pub weight: Option<u16>,
    /// Relative weight against child cgroups (v1).
    pub leaf_weight: Option<u16>,
    /// Weight per device.
    #[serde(default, deserialize_with = "nullable")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read a second.
    #[serde(default, deserialize_with = "nullable")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written a second.
    #[serde(default, deserialize_with = "nullable")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads a second.
    #[serde(rename = "throttleReadIOPSDevice", default, deserialize_with = "nullable")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes a second.
    #[serde(rename = "throttleWriteIOPSDevice", default, deserialize_with = "nullable")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight of one device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Weight.
    pub weight: Option<u16>,
    /// Against child cgroups (v1).
    pub leaf_weight: Option<u16>,
}

/// Rate of one device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Bytes or operations a second.
    pub rate: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// Such as `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Network classes (v1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// Class of outgoing packets.
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    /// Priority per interface.
    #[serde(default, deserialize_with = "nullable")]
    pub priorities: Vec<InterfacePriority>,
}

/// Priority of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InterfacePriority {
    /// Interface.
    pub name: String,
    /// Priority.
    pub priority: u32,
}

/// Limits of one RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rdma {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

impl Resources {
    /// Whether something is to be written to a cgroup; device rules do not count, since everybody has
    /// some.
    pub fn has_limits(&self) -> bool {
        *self
            != Resources {
                devices: self.devices.clone(),
                ..Resources::default()
            }
    }
}
