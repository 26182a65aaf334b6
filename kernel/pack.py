#!/usr/bin/env python3
"""pack.py IN OUT: a vmlinux with nothing but what a boot loader reads.

Sections, symbols and the 2 MiB alignment of segments in the file go. Each PT_LOAD is cut at long runs of
filler (zeroes, or the linker's int3 between aligned parts of the text), so that the loader neither reads them
nor makes guest memory out of them: memory that it does not write is zero, and nothing refers to filler. Notes
(the PVH entry) are kept, inside the piece that holds them.
"""
import struct
import sys

PAGE = 4096
# Shorter runs are not worth a program header of their own.
MIN_HOLE = 16 * PAGE
FILLER = (b"\0" * PAGE, b"\xcc" * PAGE)
EHDR, PHDR = "<16sHHIQQQIHHHHHH", "<IIQQQQQQ"
PT_LOAD, PT_NOTE = 1, 4


def pieces(data):
    """(start, end) of the parts of a segment that hold more than filler; starts are page aligned."""
    start = hole = None
    for page in range(0, len(data), PAGE):
        if data[page:page + PAGE] in FILLER:
            hole = page if hole is None else hole
            continue
        if start is None:
            start = page
        elif hole is not None and page - hole >= MIN_HOLE:
            yield start, hole
            start = page
        hole = None
    if start is not None:
        yield start, len(data) if hole is None else hole


def main(source, target):
    image = open(source, "rb").read()
    header = list(struct.unpack_from(EHDR, image, 0))
    table, count = header[5], header[10]
    segments = [struct.unpack_from(PHDR, image, table + 56 * i) for i in range(count)]

    out, headers = bytearray(PAGE), []
    for kind, flags, offset, vaddr, paddr, filesz, memsz, _ in segments:
        if kind != PT_LOAD or memsz == 0:
            continue
        parts = list(pieces(image[offset:offset + filesz])) or [(0, 0)]
        for i, (start, end) in enumerate(parts):
            # A piece's memory reaches to the next one, the last one's to the segment's end (.bss).
            limit = parts[i + 1][0] if i + 1 < len(parts) else memsz
            out += bytes(-len(out) % PAGE)
            headers.append((PT_LOAD, flags, len(out), vaddr + start, paddr + start, end - start, limit - start, PAGE))
            out += image[offset + start:offset + end]
    for kind, flags, _, vaddr, paddr, filesz, memsz, align in segments:
        if kind == PT_NOTE:
            home = next(h for h in headers if h[3] <= vaddr and vaddr + filesz <= h[3] + h[5])
            headers.append((PT_NOTE, flags, home[2] + vaddr - home[3], vaddr, paddr, filesz, memsz, align))

    if 64 + 56 * len(headers) > PAGE:
        sys.exit("pack.py: more program headers than one page holds")
    header[5], header[6] = 64, 0
    header[10:14] = len(headers), 0, 0, 0
    struct.pack_into(EHDR, out, 0, *header)
    for i, h in enumerate(headers):
        struct.pack_into(PHDR, out, 64 + 56 * i, *h)
    with open(target, "wb") as f:
        f.write(out)


main(*sys.argv[1:])
