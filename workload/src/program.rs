//! Finds the program to run, as `execvp(3)` would: as the container's user, in the container's `PATH`.
//!
//! The error texts are runc's where engines read them: Docker and Podman turn `executable file not found
//! in $PATH` and `no such file or directory` into exit status 127, `permission denied` into 126.

use std::{
    ffi::{CString, NulError},
    io,
};

use rustix::{
    fs::{Access, FileType},
    io::Errno,
};

/// The program can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No arguments at all.
    #[error("there is no program to run")]
    None,
    /// The name holds a NUL byte.
    #[error("the program's name holds a NUL byte")]
    Nul(#[source] NulError),
    /// Not in any directory of `PATH`.
    #[error("exec: {program:?}: executable file not found in $PATH")]
    NotInPath {
        /// `args[0]`.
        program: String,
    },
    /// Given by path, and not executable there.
    #[error("exec: {program:?}: {reason}")]
    NotExecutable {
        /// `args[0]`.
        program: String,
        /// Lower case, as in runc's texts.
        reason: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Path of the program that `args[0]` names.
pub(crate) fn find(args: &[String], environment: &[String]) -> Result<CString, ProgramError> {
    let program = args.first().ok_or(ProgramError::None)?;
    let found = if program.contains('/') {
        check(program)
            .map(|()| program.clone())
            .map_err(|errno| not_executable(program, errno))?
    } else {
        search(program, path_of(environment))?
    };
    CString::new(found).map_err(ProgramError::Nul)
}

/// The last `PATH` of an environment, as `getenv` of most shells would have it; empty when missing.
fn path_of(environment: &[String]) -> &str {
    environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or("")
}

fn search(program: &str, path: &str) -> Result<String, ProgramError> {
    let mut denied = None;
    if !program.is_empty() && !path.is_empty() {
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = format!("{directory}/{program}");
            match check(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
                Err(_) => {}
            }
        }
    }
    match denied {
        Some(errno) => Err(not_executable(program, errno)),
        None => Err(ProgramError::NotInPath {
            program: program.to_owned(),
        }),
    }
}

/// Whether the caller may execute this file.
fn check(path: &str) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => rustix::fs::access(path, Access::EXEC_OK),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

fn not_executable(program: &str, errno: Errno) -> ProgramError {
    let reason = match errno {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::ISDIR => "is a directory",
        _ => "cannot be executed",
    };
    ProgramError::NotExecutable {
        program: program.to_owned(),
        reason,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn error(args: &[&str], path: &str) -> String {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        find(&args, &[format!("PATH={path}")]).unwrap_err().to_string()
    }

    #[test]
    fn a_name_is_looked_up_in_the_containers_path_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for place in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(place)).unwrap();
        }
        std::fs::create_dir(dir.path().join("a/tool")).unwrap(); // a directory is no program
        for place in ["b", "c"] {
            let tool = dir.path().join(place).join("tool");
            std::fs::write(&tool, "").unwrap();
            std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let dir = dir.path().to_str().unwrap();
        let environment = [format!("PATH={dir}/missing:{dir}/a:{dir}/b:{dir}/c")];
        let found = find(&["tool".into()], &environment).unwrap();
        assert_eq!(found.to_str().unwrap(), format!("{dir}/b/tool"));
    }

    #[test]
    fn errors_are_those_that_engines_know() {
        assert_eq!(
            error(&["nope"], "/bin"),
            r#"exec: "nope": executable file not found in $PATH"#
        );
        assert_eq!(
            error(&["nope"], ""),
            r#"exec: "nope": executable file not found in $PATH"#
        );
        assert_eq!(
            error(&["/nope"], "/bin"),
            r#"exec: "/nope": no such file or directory"#
        );
        assert_eq!(error(&["/etc"], "/bin"), r#"exec: "/etc": is a directory"#);
        assert_eq!(
            error(&["/etc/passwd"], "/bin"),
            r#"exec: "/etc/passwd": permission denied"#
        );
        assert_eq!(
            error(&[""], "/bin"),
            r#"exec: "": executable file not found in $PATH"#
        );
        assert!(matches!(find(&[], &[]), Err(ProgramError::None)));
    }
}
