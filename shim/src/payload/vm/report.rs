//! What a VM has cost, for benchmarks: lines of JSON in the file that `MOAT_VM_REPORT` names, one when the
//! container is created and one when the VM has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;

use moat_vmm::vm::RunningVm;
use serde_json::json;

use super::shape::Shape;

/// Environment variable that names the file; lines are appended.
const VARIABLE: &str = "MOAT_VM_REPORT";

/// The file, opened while it can be seen.
#[derive(Debug)]
pub struct Report {
    file: File,
}

impl Report {
    /// The report that the environment asks for, if it does.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn from_environment() -> io::Result<Option<Report>> {
        let Some(path) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Some(Report { file }))
    }

    /// Writes where the guest's RAM is in the VMM's address space: what `smaps` shows elsewhere is the VMM's
    /// own.
    pub fn created(&mut self, ram: &[Range<usize>]) {
        let ranges: Vec<_> = ram.iter().map(|range| [range.start, range.end]).collect();
        let _lost = writeln!(self.file, "{}", json!({"event": "created", "ram": ranges}));
    }

    /// Writes what the VM has cost. A report that can't be written is no reason to change the workload's status.
    pub fn ended(&mut self, vm: &RunningVm, shape: &Shape) {
        let stats = vm.stats();
        let marks: Vec<_> = vm
            .marks()
            .iter()
            .map(|mark| json!({"mark": mark.number, "ns": u64::try_from(mark.at.as_nanos()).unwrap_or(u64::MAX)}))
            .collect();
        let line = json!({
            "event": "ended",
            "vcpus": shape.vcpus,
            "ram_mib": shape.ram_mib,
            "marks": marks,
            "kvm_exits": stats.kvm_exits,
            "kvm_injections": vm.kvm_statistic("irq_injections"),
            "vmm_exits": stats.vmm_exits,
        });
        let _lost = writeln!(self.file, "{line}");
    }
}
