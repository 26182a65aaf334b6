//! The container's own user database, which is a file of the image and so hostile: read bounded, and
//! only if it is a regular file. No NSS.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
};

use rustix::fs::{Mode, OFlags};

/// Most that is read of `/etc/passwd`; with tens of bytes a line this is some ten thousand users.
const MAX_PASSWD: u64 = 1 << 20;

/// The home directory that `/etc/passwd` gives a user, or `/`.
pub(crate) fn home_of(uid: u32) -> String {
    passwd()
        .and_then(|file| home_in(BufReader::new(file.take(MAX_PASSWD)), uid))
        .unwrap_or_else(|| "/".into())
}

fn passwd() -> Option<File> {
    // O_NONBLOCK: a FIFO must not hold the container up
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)); the first line of the user counts.
fn home_in(passwd: impl BufRead, uid: u32) -> Option<String> {
    for line in passwd.split(b'\n') {
        let line = line.ok()?;
        let Ok(line) = str::from_utf8(&line) else { continue };
        let mut fields = line.split(':');
        if fields.nth(2).and_then(|field| field.parse().ok()) == Some(uid) {
            return fields.nth(2).filter(|home| !home.is_empty()).map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_has_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400), uid in 0u32..3) {
            let _ = home_in(&bytes[..], uid);
        }

        #[test]
        fn a_user_is_found_behind_any_lines(before in "([a-z:0]{0,20}\n){0,5}", home in "/[a-z]{1,8}") {
            let passwd = format!("{before}u:x:4242:1::{home}:/bin/sh\n");
            prop_assert_eq!(home_in(passwd.as_bytes(), 4242), Some(home));
        }
    }

    #[test]
    fn the_home_of_a_user_is_the_sixth_field() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n\xff\xff:x:7:7::/latin:\nweb:x:1000:1000::/srv/web:\n";
        assert_eq!(home_in(&passwd[..], 0).as_deref(), Some("/root"));
        assert_eq!(home_in(&passwd[..], 1000).as_deref(), Some("/srv/web"));
        assert_eq!(home_in(&passwd[..], 7), None, "a line that is no text");
        assert_eq!(home_in(&passwd[..], 5), None);
    }

    #[test]
    fn short_lines_are_passed_over() {
        assert_eq!(
            home_in(&b"a\nb:c\nd:x:3\ne:x:3:3::/e\n"[..], 3),
            None,
            "the first match has no home"
        );
        assert_eq!(home_in(&b"::::\n:x:4:4::\n"[..], 4), None);
    }
}
