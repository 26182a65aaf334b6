//! A filter as classic BPF (kernel `networking/filter.rst`, seccomp(2)): the architecture first, then a
//! binary search for the call's number among ranges that share a decision, then the conditions. A profile of
//! 350 calls becomes some 150 instructions, of which a call runs about ten.

use std::collections::BTreeMap;

/// `AUDIT_ARCH_*` (linux/audit.h).
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// See [`AUDIT_ARCH_X86_64`].
pub const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// Bytes of `struct sock_filter`.
pub const INSTRUCTION: usize = 8;
/// `BPF_MAXINSNS`.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `==`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
    /// `argument & value == second`
    MaskedEqual,
}

/// A condition on one argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which, 0 to 5.
    pub index: u8,
    /// Comparison.
    pub operator: Operator,
    /// Right side, or the mask.
    pub value: u64,
    /// Right side after the mask.
    pub second: u64,
}

/// Conditions that must all hold, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// `SECCOMP_RET_*`.
    pub action: u32,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This.
    Always(u32),
    /// What the first rule says whose conditions hold, else the default.
    First(Vec<Rule>),
}

/// All decisions about the calls of one architecture.
#[derive(Debug, Clone)]
pub struct Block {
    /// `AUDIT_ARCH_*`.
    pub architecture: u32,
    /// Whether arguments have 64 bits.
    pub wide: bool,
    /// What is decided from each number on, up to the next one; the first is for 0.
    pub decisions: BTreeMap<u32, Decision>,
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

const LD_ABS: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        operand,
    }
}

/// The program, as the kernel takes it.
pub fn assemble(blocks: &[Block], default: u32, other_architecture: u32) -> Vec<u8> {
    let mut program = vec![plain(LD_ABS, ARCHITECTURE)];
    for block in blocks {
        let mut body = vec![plain(LD_ABS, NUMBER)];
        body.extend(search(&ranges(block), block.wide, default));
        // To the next block, over a body that may be longer than a conditional jump reaches.
        program.push(Instruction {
            code: JEQ,
            jump_true: 1,
            jump_false: 0,
            operand: block.architecture,
        });
        program.push(plain(JA, distance(body.len())));
        program.extend(body);
    }
    program.push(plain(RET, other_architecture));
    program
        .iter()
        .flat_map(|instruction| {
            let [code_low, code_high] = instruction.code.to_ne_bytes();
            let [a, b, c, d] = instruction.operand.to_ne_bytes();
            [
                code_low,
                code_high,
                instruction.jump_true,
                instruction.jump_false,
                a,
                b,
                c,
                d,
            ]
        })
        .collect()
}

/// A length as a jump; no program comes near its limits.
fn distance(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The first numbers of ranges, neighbours with the same decision joined.
fn ranges(block: &Block) -> Vec<(u32, &Decision)> {
    let mut ranges: Vec<(u32, &Decision)> = Vec::new();
    for (first, decision) in &block.decisions {
        if ranges.last().is_none_or(|(_, last)| last != &decision) {
            ranges.push((*first, decision));
        }
    }
    ranges
}

fn search(ranges: &[(u32, &Decision)], wide: bool, default: u32) -> Vec<Instruction> {
    match ranges {
        [] => vec![plain(RET, default)],
        [(_, decision)] => decide(decision, wide, default),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let (first, _) = upper[0];
            let below = search(lower, wide, default);
            let mut code = match u8::try_from(below.len()) {
                Ok(over) => vec![Instruction {
                    code: JGE,
                    jump_true: over,
                    jump_false: 0,
                    operand: first,
                }],
                Err(_) => vec![
                    Instruction {
                        code: JGE,
                        jump_true: 0,
                        jump_false: 1,
                        operand: first,
                    },
                    plain(JA, distance(below.len())),
                ],
            };
            code.extend(below);
            code.extend(search(upper, wide, default));
            code
        }
    }
}

fn decide(decision: &Decision, wide: bool, default: u32) -> Vec<Instruction> {
    let rules = match decision {
        Decision::Always(action) => return vec![plain(RET, *action)],
        Decision::First(rules) => rules,
    };
    let mut code = Vec::new();
    for rule in rules {
        let tests: Vec<Vec<Step>> = rule
            .conditions
            .iter()
            .map(|condition| test(condition, wide))
            .collect();
        let length = tests.iter().map(Vec::len).sum::<usize>() + 1;
        let mut at = 0;
        for test in tests {
            let end = at + test.len();
            for step in test {
                code.push(step.place(at, end, length));
                at += 1;
            }
        }
        code.push(plain(RET, rule.action));
    }
    code.push(plain(RET, default));
    code
}

/// Where a comparison leads.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// To the next instruction.
    On,
    /// The condition holds.
    Holds,
    /// It does not.
    Fails,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Plain(Instruction),
    Jump {
        code: u16,
        operand: u32,
        when_true: Way,
        when_false: Way,
    },
}

impl Step {
    /// At `at` of a rule of `length` instructions, in a test that ends at `end`.
    fn place(self, at: usize, end: usize, length: usize) -> Instruction {
        match self {
            Step::Plain(instruction) => instruction,
            Step::Jump {
                code,
                operand,
                when_true,
                when_false,
            } => {
                let over = |way: Way| {
                    let target = match way {
                        Way::On => at + 1,
                        Way::Holds => end,
                        Way::Fails => length,
                    };
                    // Six tests of at most six instructions: never near 255.
                    u8::try_from(target - at - 1).unwrap_or(u8::MAX)
                };
                Instruction {
                    code,
                    jump_true: over(when_true),
                    jump_false: over(when_false),
                    operand,
                }
            }
        }
    }
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([a, b, c, d]))
}

/// A 64-bit comparison in two halves, the upper first; 32-bit callers have the lower alone.
fn test(condition: &Condition, wide: bool) -> Vec<Step> {
    let lower_at = ARGUMENTS + 8 * u32::from(condition.index);
    let load = |offset| Step::Plain(plain(LD_ABS, offset));
    let mask = |bits| Step::Plain(plain(AND, bits));
    let jump = |code, operand, when_true, when_false| Step::Jump {
        code,
        operand,
        when_true,
        when_false,
    };
    let (high, low) = halves(condition.value);
    let (second_high, second_low) = halves(condition.second);
    use Way::{Fails, Holds, On};
    let lower = match condition.operator {
        Operator::Equal => vec![jump(JEQ, low, Holds, Fails)],
        Operator::NotEqual => vec![jump(JEQ, low, Fails, Holds)],
        Operator::Greater => vec![jump(JGT, low, Holds, Fails)],
        Operator::GreaterOrEqual => vec![jump(JGE, low, Holds, Fails)],
        Operator::Less => vec![jump(JGE, low, Fails, Holds)],
        Operator::LessOrEqual => vec![jump(JGT, low, Fails, Holds)],
        Operator::MaskedEqual => vec![mask(low), jump(JEQ, second_low, Holds, Fails)],
    };
    let upper = match condition.operator {
        Operator::Equal => vec![jump(JEQ, high, On, Fails)],
        Operator::NotEqual => vec![jump(JEQ, high, On, Holds)],
        Operator::Greater | Operator::GreaterOrEqual => {
            vec![jump(JGT, high, Holds, On), jump(JEQ, high, On, Fails)]
        }
        Operator::Less | Operator::LessOrEqual => {
            vec![jump(JGT, high, Fails, On), jump(JEQ, high, On, Holds)]
        }
        Operator::MaskedEqual => vec![mask(high), jump(JEQ, second_high, On, Fails)],
    };
    let mut steps = Vec::with_capacity(7);
    if wide {
        steps.push(load(lower_at + 4));
        steps.extend(upper);
    }
    steps.push(load(lower_at));
    steps.extend(lower);
    steps
}

/// The kernel's side, for tests.
#[cfg(test)]
pub(super) mod simulate {
    use super::*;

    /// `struct seccomp_data`.
    #[derive(Debug, Clone)]
    pub struct Call {
        pub number: u32,
        pub architecture: u32,
        pub arguments: [u64; 6],
    }

    impl Call {
        fn word(&self, offset: u32) -> u32 {
            match offset {
                NUMBER => self.number,
                ARCHITECTURE => self.architecture,
                _ => {
                    let argument = self.arguments[usize::try_from((offset - ARGUMENTS) / 8).unwrap()];
                    let (high, low) = halves(argument);
                    if (offset - ARGUMENTS).is_multiple_of(8) {
                        low
                    } else {
                        high
                    }
                }
            }
        }
    }

    /// The program's answer.
    pub fn run(program: &[u8], call: &Call) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let bytes: [u8; INSTRUCTION] = program[at * INSTRUCTION..][..INSTRUCTION].try_into().unwrap();
            let [c0, c1, jump_true, jump_false, a, b, c, d] = bytes;
            let operand = u32::from_ne_bytes([a, b, c, d]);
            let branch = |taken: bool| usize::from(if taken { jump_true } else { jump_false });
            at += 1;
            match u16::from_ne_bytes([c0, c1]) {
                LD_ABS => accumulator = call.word(operand),
                AND => accumulator &= operand,
                JA => at += usize::try_from(operand).unwrap(),
                JEQ => at += branch(accumulator == operand),
                JGT => at += branch(accumulator > operand),
                JGE => at += branch(accumulator >= operand),
                RET => return operand,
                other => panic!("{other:#x}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::simulate::{Call, run};
    use super::*;

    fn holds(condition: &Condition, argument: u64) -> bool {
        match condition.operator {
            Operator::NotEqual => argument != condition.value,
            Operator::Less => argument < condition.value,
            Operator::LessOrEqual => argument <= condition.value,
            Operator::Equal => argument == condition.value,
            Operator::GreaterOrEqual => argument >= condition.value,
            Operator::Greater => argument > condition.value,
            Operator::MaskedEqual => argument & condition.value == condition.second,
        }
    }

    const DEFAULT: u32 = 0xdefa;

    fn expected(block: &Block, call: &Call) -> u32 {
        let (_, decision) = block.decisions.range(..=call.number).next_back().unwrap();
        match decision {
            Decision::Always(action) => *action,
            Decision::First(rules) => rules
                .iter()
                .find(|rule| {
                    rule.conditions
                        .iter()
                        .all(|c| holds(c, call.arguments[usize::from(c.index)]))
                })
                .map_or(DEFAULT, |rule| rule.action),
        }
    }

    /// Values whose halves are near one another's, where comparisons go wrong if they do.
    fn value() -> impl Strategy<Value = u64> {
        (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low)
    }

    fn any_condition() -> impl Strategy<Value = Condition> {
        let operator = prop::sample::select(vec![
            Operator::NotEqual,
            Operator::Less,
            Operator::LessOrEqual,
            Operator::Equal,
            Operator::GreaterOrEqual,
            Operator::Greater,
            Operator::MaskedEqual,
        ]);
        (0u8..6, operator, value(), value()).prop_map(|(index, operator, value, second)| Condition {
            index,
            operator,
            value,
            second,
        })
    }

    fn any_decision() -> impl Strategy<Value = Decision> {
        let rule = (prop::collection::vec(any_condition(), 1..4), 1u32..100)
            .prop_map(|(conditions, action)| Rule { conditions, action });
        prop_oneof![
            (1u32..4).prop_map(Decision::Always),
            prop::collection::vec(rule, 1..4).prop_map(Decision::First),
        ]
    }

    proptest! {
        #[test]
        fn a_program_decides_as_its_rules_say(
            first in any_decision(),
            others in prop::collection::btree_map(1u32..300, any_decision(), 0..120),
            number in 0u32..310,
            arguments in prop::array::uniform6(value()),
        ) {
            let mut decisions = others;
            decisions.insert(0, first);
            let block = Block { architecture: AUDIT_ARCH_X86_64, wide: true, decisions };
            let other = Block {
                architecture: AUDIT_ARCH_I386,
                wide: false,
                decisions: BTreeMap::from([(0, Decision::Always(7))]),
            };
            let call = Call { number, architecture: AUDIT_ARCH_X86_64, arguments };
            let program = assemble(&[other, block.clone()], DEFAULT, 9);
            prop_assert_eq!(run(&program, &call), expected(&block, &call));
            let i386 = Call { architecture: AUDIT_ARCH_I386, ..call };
            prop_assert_eq!(run(&program, &i386), 7);
        }
    }
}
