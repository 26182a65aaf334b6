//! The choice: the strongest isolation that anybody asked for. Each source may ask and so raise; none
//! can lower what another asked for, which is why an annotation that comes from an image is harmless.

use std::fmt;

use super::host::VmObstacle;
use super::{ANNOTATION, Isolation, UnknownIsolation, Wish};

/// Who may ask, in the order in which a tie is credited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `--isolation`.
    Flag,
    /// The annotation `io.moat.isolation` in config.json.
    Annotation,
    /// The name that moat was called by (`moat-vm`, `moat-process`).
    Name,
    /// Nobody asked.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => formatter.write_str("asked for by --isolation"),
            Source::Annotation => write!(formatter, "asked for by the annotation {ANNOTATION}"),
            Source::Name => formatter.write_str("asked for by the name moat was called by"),
            Source::Default => formatter.write_str("nobody asked for more"),
        }
    }
}

/// What was asked for, by whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request {
    /// By `--isolation`.
    pub flag: Wish,
    /// By the annotation.
    pub annotation: Wish,
    /// By the program's name.
    pub name: Wish,
}

impl Request {
    /// Collects the wishes.
    ///
    /// # Errors
    /// When the annotation names no isolation.
    pub fn new(
        flag: Wish,
        annotation: Option<&str>,
        program_name: &str,
    ) -> Result<Request, UnknownIsolation> {
        let name = match program_name {
            "moat-vm" => Wish::AtLeast(Isolation::Vm),
            "moat-process" => Wish::AtLeast(Isolation::Process),
            _ => Wish::Auto,
        };
        let annotation = annotation.map_or(Ok(Wish::Auto), str::parse)?;
        Ok(Request {
            flag,
            annotation,
            name,
        })
    }
}

/// What was chosen, and whose word it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The wall.
    pub isolation: Isolation,
    /// Who asked for it.
    pub source: Source,
}

/// The chosen isolation can't be had here. Never answered by a weaker one.
#[derive(Debug, thiserror::Error)]
#[error("isolation vm is {source_of_wish}, but this host cannot run a microVM")]
pub struct Refusal {
    /// Who asked for it.
    pub source_of_wish: Source,
    /// What stands in the way.
    #[source]
    pub obstacle: VmObstacle,
}

/// Chooses. `vm_obstacle` tells what keeps this host from running a microVM; it is asked only when a
/// microVM was chosen, since finding out costs system calls that a plain process need not pay.
///
/// # Errors
/// A [`Refusal`] when a microVM is asked for and not possible.
pub fn choose(
    request: &Request,
    vm_obstacle: impl FnOnce() -> Option<VmObstacle>,
) -> Result<Choice, Refusal> {
    let wishes = [
        (request.flag, Source::Flag),
        (request.annotation, Source::Annotation),
        (request.name, Source::Name),
    ];
    let mut choice = Choice {
        isolation: Isolation::Process,
        source: Source::Default,
    };
    for (wish, source) in wishes {
        if let Wish::AtLeast(isolation) = wish
            && (isolation > choice.isolation || choice.source == Source::Default)
        {
            choice = Choice { isolation, source };
        }
    }
    match choice.isolation {
        Isolation::Process => Ok(choice),
        Isolation::Vm => match vm_obstacle() {
            None => Ok(choice),
            Some(obstacle) => Err(Refusal {
                source_of_wish: choice.source,
                obstacle,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: [Wish; 3] = [
        Wish::Auto,
        Wish::AtLeast(Isolation::Process),
        Wish::AtLeast(Isolation::Vm),
    ];

    fn wished(wish: Wish) -> Isolation {
        match wish {
            Wish::Auto => Isolation::Process,
            Wish::AtLeast(isolation) => isolation,
        }
    }

    #[test]
    fn the_strongest_wish_wins_whoever_has_it() {
        for flag in WISHES {
            for annotation in WISHES {
                for name in WISHES {
                    let choice = choose(
                        &Request {
                            flag,
                            annotation,
                            name,
                        },
                        || None,
                    )
                    .unwrap();
                    let strongest = wished(flag).max(wished(annotation)).max(wished(name));
                    assert_eq!(choice.isolation, strongest, "{flag:?} {annotation:?} {name:?}");
                }
            }
        }
    }

    #[test]
    fn an_annotation_cannot_lower_what_the_flag_asks_for() {
        let request = Request::new("vm".parse().unwrap(), Some("process"), "moat").unwrap();
        let choice = choose(&request, || None).unwrap();
        assert_eq!(
            choice,
            Choice {
                isolation: Isolation::Vm,
                source: Source::Flag
            }
        );
    }

    #[test]
    fn a_vm_that_is_not_possible_is_refused_and_never_weakened() {
        let request = Request::new(Wish::Auto, None, "moat-vm").unwrap();
        let refusal = choose(&request, || Some(VmObstacle::NoKvmDevice)).unwrap_err();
        assert_eq!(refusal.source_of_wish, Source::Name);
    }

    #[test]
    fn a_process_never_asks_for_the_state_of_kvm() {
        let request = Request::new(Wish::Auto, Some("auto"), "moat").unwrap();
        let choice = choose(&request, || panic!("asked")).unwrap();
        assert_eq!(
            choice,
            Choice {
                isolation: Isolation::Process,
                source: Source::Default
            }
        );
    }

    #[test]
    fn an_unknown_word_in_the_annotation_is_an_error() {
        let error = Request::new(Wish::Auto, Some("vmm"), "moat").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown isolation \"vmm\": use process, vm or auto"
        );
    }
}
