//! What this VMM needs of KVM beyond its oldest interface (KVM API 4.4 "KVM_CHECK_EXTENSION"), by name, for
//! reports and for the builder, which refuses a KVM that lacks one.

use std::fs::File;
use std::io;

use kvm_ioctls::Cap;

use crate::kvm;

/// Each is there since Linux 4.12 at the latest.
pub(crate) const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// Names of the extensions that this KVM lacks; none when all is well.
///
/// # Errors
/// When the descriptor can't be duplicated.
pub fn missing(kvm: &File) -> io::Result<Vec<&'static str>> {
    let kvm = kvm::from_file(kvm.try_clone()?);
    let lacking = NEEDED
        .into_iter()
        .filter(|(extension, _)| !kvm.check_extension(*extension));
    Ok(lacking.map(|(_, name)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_can_be_opened_is_asked() {
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
            eprintln!("skipped: /dev/kvm cannot be opened");
            return;
        };
        assert!(missing(&kvm).unwrap().len() < NEEDED.len());
    }
}
