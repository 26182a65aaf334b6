//! A minimal initramfs: one program as `/init` (kernel `Documentation/driver-api/early-userspace/
//! buffer-format.rst`, "newc" cpio).

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

/// Device number of `/dev/console`, which the kernel opens as standard input, output and error of init.
const CONSOLE: (u32, u32) = (5, 1);

/// An archive with `/dev`, `/dev/console` and `init` as `/init`.
pub fn with_init(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(init.len() + 1024);
    entry(&mut archive, "dev", S_IFDIR | 0o755, (0, 0), &[]);
    entry(&mut archive, "dev/console", S_IFCHR | 0o600, CONSOLE, &[]);
    entry(&mut archive, "init", S_IFREG | 0o755, (0, 0), init);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// One header of thirteen fields of eight hex digits, the name with its NUL, the content; each of the two
/// padded to 4 bytes.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    // Inode numbers only tell hard links apart; the offset in the archive is unique.
    let number = |value: usize| u32::try_from(value).expect("an initramfs is far smaller than 4 GiB");
    let inode = number(archive.len()) + 1;
    let size = number(content.len());
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        size,
        0,
        0,
        device.0,
        device.1,
        number(name.len() + 1),
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Each entry, read back by the format's rules.
    fn read(archive: &[u8]) -> Vec<Entry> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |i: usize| {
                let digits = &archive[at + 6 + 8 * i..at + 14 + 8 * i];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_len) = (field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_len - 1];
            assert_eq!(archive[at + 110 + name_len - 1], 0);
            let body = (at + 110 + name_len).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((
                name,
                field(1),
                (field(9), field(10)),
                archive[body..body + size].to_vec(),
            ));
            at = (body + size).next_multiple_of(4);
        }
    }

    #[test]
    fn archive_holds_console_and_init() {
        for init in [&b""[..], b"x", b"1234", &[7; 4097]] {
            let entries = read(&with_init(init));
            let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
            assert_eq!(names, ["dev", "dev/console", "init"]);
            assert_eq!((entries[1].1, entries[1].2), (0o020_600, (5, 1)));
            assert_eq!((entries[2].1, entries[2].3.as_slice()), (0o100_755, init));
        }
    }
}
