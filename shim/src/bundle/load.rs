//! Reads config.json, bounded, and says where it is wrong: file, line, and the path of the field.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::config::Config;

/// Largest config.json accepted, in bytes. Engines write kilobytes; a megabyte of environment is odd
/// but legal; what is larger than this would only serve to exhaust memory.
pub const MAX_CONFIG: u64 = 32 << 20;

/// Why config.json could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It can't be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is larger than [`MAX_CONFIG`].
    #[error("{} is larger than {} MiB", path.display(), MAX_CONFIG >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not JSON, or a field is missing or of a wrong type.
    #[error("{}, line {}, field `{field}`", path.display(), source.line())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where the reader was, such as `process.user.uid`.
        field: String,
        /// What it found.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads `config.json` of a bundle, or `file` instead when given.
///
/// # Errors
/// When it can't be read or understood.
pub fn load(bundle: &Path, file: Option<&Path>) -> Result<Config, LoadError> {
    let path = file.map_or_else(|| bundle.join("config.json"), Path::to_owned);
    let read = |source| LoadError::Read {
        path: path.clone(),
        source,
    };
    let file = File::open(&path).map_err(read)?;
    let mut text = Vec::with_capacity(16 << 10);
    file.take(MAX_CONFIG + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(LoadError::TooLarge { path });
    }
    serde_json::from_slice(&text).map_err(|source| {
        let field = field_at(&text, source.line(), source.column());
        LoadError::Parse { path, field, source }
    })
}

/// The path of the field in whose value the given place (both from 1) lies, `.` for the top level.
fn field_at(text: &[u8], line: usize, column: usize) -> String {
    let start: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let end = (start + column).min(text.len());
    let mut scan = Scan::default();
    for byte in &text[..end] {
        scan.step(*byte);
    }
    scan.path()
}

/// One open bracket: what of it is being read.
enum Level {
    Object { key: String },
    Array { index: usize },
}

#[derive(Default)]
struct Scan {
    levels: Vec<Level>,
    in_string: bool,
    escaped: bool,
    string: Vec<u8>,
}

impl Scan {
    fn step(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => self.string.push(byte),
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.string.clear();
            }
            b'{' => self.levels.push(Level::Object { key: String::new() }),
            b'[' => self.levels.push(Level::Array { index: 0 }),
            b'}' | b']' => {
                self.levels.pop();
            }
            b':' => {
                if let Some(Level::Object { key }) = self.levels.last_mut() {
                    *key = String::from_utf8_lossy(&self.string).into_owned();
                }
            }
            b',' => match self.levels.last_mut() {
                Some(Level::Object { key }) => key.clear(),
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            _ => {}
        }
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for level in &self.levels {
            match level {
                Level::Object { key } if key.is_empty() => {}
                Level::Object { key } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Level::Array { index } => path.push_str(&format!("[{index}]")),
            }
        }
        if path.is_empty() { ".".to_owned() } else { path }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load_text(text: &str) -> Result<Config, LoadError> {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), text).unwrap();
        load(bundle.path(), None)
    }

    #[test]
    fn an_error_names_line_and_field() {
        let text =
            "{\"ociVersion\": \"1.0.2\",\n \"process\": {\"cwd\": \"/\",\n\"user\": {\"uid\": \"zero\"}}}";
        let error = load_text(text).unwrap_err();
        assert!(
            error.to_string().ends_with("line 3, field `process.user.uid`"),
            "{error}"
        );
    }

    #[test]
    fn an_error_in_a_list_names_the_index() {
        let text = r#"{"ociVersion": "1.0.2", "mounts": [{"destination": "/a"}, {"destination": 7}]}"#;
        let error = load_text(text).unwrap_err();
        assert!(
            error.to_string().ends_with("field `mounts[1].destination`"),
            "{error}"
        );
    }

    #[test]
    fn null_lists_of_go_programs_are_empty_lists() {
        let config =
            load_text(r#"{"ociVersion": "1.0.2", "mounts": null, "linux": null, "hooks": null}"#).unwrap();
        assert!(config.mounts.is_empty());
    }

    #[test]
    fn unknown_properties_are_skipped() {
        assert!(load_text(r#"{"ociVersion": "1.9.0", "fromTheFuture": {"a": [1, 2]}}"#).is_ok());
    }

    #[test]
    fn an_oversized_file_is_refused_unread() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("config.json");
        File::create(&path).unwrap().set_len(MAX_CONFIG + 1).unwrap();
        assert!(matches!(
            load(bundle.path(), None),
            Err(LoadError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/no/such/bundle"), None).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/such/bundle/config.json");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_placed_without_panic(text in ".*", line in 0usize..10, column in 0usize..200) {
            field_at(text.as_bytes(), line, column);
        }
    }
}
