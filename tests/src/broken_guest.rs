//! Guest kernels that do not come up: small ELF images that speak on the serial port and then stop.

/// How the kernel stops.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// `cli; hlt` for ever: it hangs.
    Hang,
    /// `ud2` without an interrupt table: the CPU shuts down by a triple fault.
    TripleFault,
}

const LOAD_ADDRESS: u32 = 0x10_0000; // 1 MiB, where Linux is linked to
const HEADERS: u32 = 64 + 56; // the ELF header and one program header
const SERIAL_PORT: u16 = 0x3f8; // COM1

/// A 64-bit ELF executable whose code writes `words` to the serial port and ends as told.
///
/// # Panics
/// When `words` is longer than the 64 KiB that the code's addresses allow for.
#[must_use]
pub fn kernel(words: &str, end: End) -> Vec<u8> {
    let code = code(words, end);
    let size = u64::from(HEADERS) + u64::try_from(code.len()).expect("a short message");
    let start = u64::from(LOAD_ADDRESS);
    let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put16(&mut elf, &[2, 62]); // ET_EXEC, EM_X86_64
    put32(&mut elf, &[1]); // EV_CURRENT
    put64(&mut elf, &[start + u64::from(HEADERS), 64, 0]); // e_entry, e_phoff, e_shoff
    put32(&mut elf, &[0]); // e_flags
    put16(&mut elf, &[64, 56, 1, 64, 0, 0]); // sizes of the headers, one program header, no section
    put32(&mut elf, &[1, 7]); // PT_LOAD, readable, writable and executable
    put64(&mut elf, &[0, start, start, size, size, 0x1000]); // p_offset to p_align
    elf.extend(code);
    elf
}

/// `mov dx, port; mov al, byte; out dx, al` for each byte: needs neither a stack nor data.
fn code(words: &str, end: End) -> Vec<u8> {
    let [low, high] = SERIAL_PORT.to_le_bytes();
    let mut code = vec![0x66, 0xba, low, high];
    for byte in words.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(match end {
        End::Hang => [0xfa, 0xf4, 0xeb, 0xfc], // cli; hlt; jmp back to cli
        End::TripleFault => [0x0f, 0x0b, 0x0f, 0x0b], // ud2
    });
    assert!(code.len() < 0x1_0000, "a message of at most 64 KiB");
    code
}

fn put16(to: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|v| to.extend(v.to_le_bytes()));
}

fn put32(to: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| to.extend(v.to_le_bytes()));
}

fn put64(to: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| to.extend(v.to_le_bytes()));
}
