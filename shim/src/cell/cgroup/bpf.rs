//! The device filter of cgroup v2: a program that the kernel runs when a device node is made or opened
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`, bpf(2), kernel `include/uapi/linux/bpf.h`).
//!
//! It walks the rules from the last to the first. A register holds the accesses that are asked for and
//! not yet allowed: an allowing rule that matches takes its own out, and when none is left the answer is
//! yes; a denying rule that matches one of those left says no. So for each access the last rule that
//! speaks of it decides, and rules for reading and for writing add up.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper without a BPF library")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::{Mode, OFlags};

use super::devices::{Kind, Rule, access};

/// `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const BPF_LDX_MEM_W: u8 = 0x61;
const BPF_ALU_AND_K: u8 = 0x54;
const BPF_ALU_RSH_K: u8 = 0x74;
const BPF_ALU_MOV_X: u8 = 0xbc;
const BPF_ALU64_MOV_K: u8 = 0xb7;
const BPF_JMP32_JEQ_K: u8 = 0x16;
const BPF_JMP32_JNE_K: u8 = 0x56;
const BPF_EXIT: u8 = 0x95;

/// Answer.
const R0: u8 = 0;
/// `struct bpf_cgroup_dev_ctx *` at entry.
const CONTEXT: u8 = 1;
/// Accesses asked for and not yet allowed.
const WANTED: u8 = 2;
/// Kind of node.
const KIND: u8 = 3;
/// Major number.
const MAJOR: u8 = 4;
/// Minor number.
const MINOR: u8 = 5;
/// Scratch; registers above 5 need no saving without calls.
const SCRATCH: u8 = 6;

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`.
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHARACTER: i32 = 2;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(BPF_ALU64_MOV_K, R0, 0, 0, i32::from(allow)),
        instruction(BPF_EXIT, 0, 0, 0, 0),
    ]
}

/// The program for a list of rules.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }, access_type being
    // (BPF_DEVCG_ACC_* << 16) | BPF_DEVCG_DEV_*.
    let mut program = vec![
        instruction(BPF_LDX_MEM_W, WANTED, CONTEXT, 0, 0),
        instruction(BPF_ALU_MOV_X, KIND, WANTED, 0, 0),
        instruction(BPF_ALU_AND_K, KIND, 0, 0, 0xffff),
        instruction(BPF_ALU_RSH_K, WANTED, 0, 0, 16),
        instruction(BPF_LDX_MEM_W, MAJOR, CONTEXT, 4, 0),
        instruction(BPF_LDX_MEM_W, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(step(*rule));
        if is_unconditional(*rule) {
            // The kernel refuses programs with instructions that nothing leads to.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// Whether a rule answers for every device and access, so that rules before it say nothing.
fn is_unconditional(rule: Rule) -> bool {
    rule.kind == Kind::All && rule.major.is_none() && rule.minor.is_none() && rule.access == access::ALL
}

fn step(rule: Rule) -> Vec<Instruction> {
    let mut verdict = Vec::with_capacity(4);
    match (rule.allow, rule.access == access::ALL) {
        (_, true) => {}
        (true, false) => {
            verdict.push(instruction(BPF_ALU_AND_K, WANTED, 0, 0, i32::from(!rule.access)));
            verdict.push(instruction(BPF_JMP32_JNE_K, WANTED, 0, 2, 0));
        }
        (false, false) => {
            verdict.push(instruction(BPF_ALU_MOV_X, SCRATCH, WANTED, 0, 0));
            verdict.push(instruction(BPF_ALU_AND_K, SCRATCH, 0, 0, i32::from(rule.access)));
            verdict.push(instruction(BPF_JMP32_JEQ_K, SCRATCH, 0, 2, 0));
        }
    }
    verdict.extend(answer(rule.allow));
    let kind = match rule.kind {
        Kind::All => None,
        Kind::Block => Some(DEVICE_BLOCK),
        Kind::Character => Some(DEVICE_CHARACTER),
    };
    let conditions: Vec<(u8, i32)> = [
        (KIND, kind),
        (MAJOR, rule.major.map(u32::cast_signed)),
        (MINOR, rule.minor.map(u32::cast_signed)),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let mut step = Vec::with_capacity(conditions.len() + verdict.len());
    for (index, (register, value)) in conditions.iter().enumerate() {
        // Over the conditions that are left and the verdict; at most 2 + 5 instructions.
        let over = i16::try_from(conditions.len() - index - 1 + verdict.len()).unwrap_or(i16::MAX);
        step.push(instruction(BPF_JMP32_JNE_K, *register, 0, over, *value));
    }
    step.extend(verdict);
    step
}

/// `BPF_PROG_LOAD`, `BPF_PROG_ATTACH`, `BPF_PROG_TYPE_CGROUP_DEVICE`, `BPF_CGROUP_DEVICE`,
/// `BPF_F_ALLOW_MULTI`.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// `union bpf_attr`, the head of its `BPF_PROG_LOAD` part.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr`, its `BPF_PROG_ATTACH` part.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program and attaches it to the cgroup; the cgroup keeps it.
pub(super) fn attach(cgroup: &Path, program: &[Instruction]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(cgroup, flags, Mode::empty())?;
    let program = load(program)?;
    let attributes = AttachAttributes {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: `attributes` is a live head of `union bpf_attr` of the given size, of integers only; the
    // kernel takes its missing tail as zero. Both descriptors are open for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `attributes` is a live head of `union bpf_attr` of the given size; `insns` points to
    // `insn_cnt` instructions laid out as `struct bpf_insn` and `license` to a NUL-terminated string,
    // both alive until after the call, and both only read.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>(),
        )
    };
    let descriptor = i32::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidData)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: BPF_PROG_LOAD has just returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], access: u8, kind: i32, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let value = immediate.cast_unsigned();
            at += 1;
            let mut jump = |take: bool| at += if take { usize::try_from(offset).unwrap() } else { 0 };
            match code {
                BPF_LDX_MEM_W => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                BPF_ALU_AND_K => registers[to] &= value,
                BPF_ALU_RSH_K => registers[to] >>= value,
                BPF_ALU_MOV_X => registers[to] = registers[from],
                BPF_ALU64_MOV_K => registers[to] = value,
                BPF_JMP32_JEQ_K => jump(registers[to] == value),
                BPF_JMP32_JNE_K => jump(registers[to] != value),
                BPF_EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn nothing_follows_a_rule_that_answers_for_everything() {
        let all = Rule {
            allow: false,
            kind: Kind::All,
            major: None,
            minor: None,
            access: access::ALL,
        };
        let program = program(&[all, all]);
        assert_eq!(program[6..], answer(false));
    }

    /// What the rules say, each access by itself.
    fn expected(rules: &[Rule], wanted: u8, kind: i32, major: u32, minor: u32) -> bool {
        [access::MKNOD, access::READ, access::WRITE]
            .into_iter()
            .filter(|bit| wanted & bit != 0)
            .all(|bit| {
                let matches = |rule: &&Rule| {
                    let of_kind = match rule.kind {
                        Kind::All => true,
                        Kind::Block => kind == DEVICE_BLOCK,
                        Kind::Character => kind == DEVICE_CHARACTER,
                    };
                    of_kind
                        && rule.access & bit != 0
                        && rule.major.is_none_or(|number| number == major)
                        && rule.minor.is_none_or(|number| number == minor)
                };
                rules.iter().rev().find(matches).is_some_and(|rule| rule.allow)
            })
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(Kind::All), Just(Kind::Block), Just(Kind::Character)];
        let number = || prop::option::of(0u32..3);
        (any::<bool>(), kind, number(), number(), 1u8..=7).prop_map(|(allow, kind, major, minor, access)| {
            Rule {
                allow,
                kind,
                major,
                minor,
                access,
            }
        })
    }

    proptest! {
        #[test]
        fn the_last_rule_that_speaks_of_an_access_decides(
            rules in prop::collection::vec(any_rule(), 0..8),
            wanted in 1u8..=7, kind in 1i32..=2, major in 0u32..3, minor in 0u32..3,
        ) {
            let answer = run(&program(&rules), wanted, kind, major, minor);
            prop_assert_eq!(answer, expected(&rules, wanted, kind, major, minor));
        }
    }

    #[test]
    fn nothing_follows_a_rule_about_everything() {
        let deny_all = super::super::devices::rules(&[]).unwrap()[0];
        let program = program(&[
            Rule {
                allow: true,
                ..deny_all
            },
            deny_all,
        ]);
        assert_eq!(program.len(), 6 + 2);
    }

    #[test]
    fn default_rules_let_null_be_opened_and_a_disk_only_be_made() {
        let program = program(&super::super::devices::rules(&[]).unwrap());
        assert!(run(
            &program,
            access::READ | access::WRITE,
            DEVICE_CHARACTER,
            1,
            3
        ));
        assert!(run(&program, access::MKNOD, DEVICE_BLOCK, 8, 0));
        assert!(!run(&program, access::READ, DEVICE_BLOCK, 8, 0));
    }
}
