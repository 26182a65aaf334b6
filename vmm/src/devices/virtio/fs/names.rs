//! Names that the guest sends. A name is one component: it can never lead out of its directory.

use std::ffi::CStr;

use rustix::io::Errno;

/// Takes a NUL-terminated name of one entry off the front of `args`.
///
/// # Errors
/// EINVAL when it is empty, `.`, `..`, holds a slash or does not end.
pub(super) fn take_name<'a>(args: &mut &'a [u8]) -> Result<&'a CStr, Errno> {
    let name = take_string(args)?;
    let bytes = name.to_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    Ok(name)
}

/// Takes any NUL-terminated string: the target of a symbolic link, the name of an attribute.
///
/// # Errors
/// EINVAL when it does not end.
pub(super) fn take_string<'a>(args: &mut &'a [u8]) -> Result<&'a CStr, Errno> {
    let string = CStr::from_bytes_until_nul(args).map_err(|_| Errno::INVAL)?;
    *args = args.get(string.to_bytes_with_nul().len()..).unwrap_or_default();
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_one_component_are_refused() {
        for bad in [
            &b"\0"[..],
            b".\0",
            b"..\0",
            b"a/b\0",
            b"/\0",
            b"/etc/passwd\0",
            b"../x\0",
            b"x/..\0",
            b"x/\0",
            b"endless",
            b"",
        ] {
            assert_eq!(take_name(&mut &bad[..]), Err(Errno::INVAL), "{bad:?}");
        }
    }

    #[test]
    fn odd_but_valid_names_pass_and_the_rest_is_left() {
        for good in [&b"...\0"[..], b".hidden\0", b"..a\0", b"a b\n\0", b"\xff\xfe\0"] {
            let mut args = [good, b"rest"].concat();
            let mut rest = args.as_mut_slice() as &[u8];
            assert_eq!(take_name(&mut rest).unwrap().to_bytes_with_nul(), good);
            assert_eq!(rest, b"rest");
        }
    }
}
