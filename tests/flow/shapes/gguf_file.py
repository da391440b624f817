"""Writes GGUF files of 32-bit tensors, for the miniature models of this folder."""

import struct

import numpy as np

ALIGNMENT = 32
U32, F32, BOOL, TEXT, ARRAY = 4, 6, 7, 8, 9
# Arrays of whole numbers are signed: llama.cpp reads tokens' types and lists of heads that way.
I32 = 5


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(value, whole=U32):
    """The type number of a value, and its bytes."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return whole, struct.pack("<i" if whole == I32 else "<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    return TEXT, text(value)


def field(value):
    if not isinstance(value, list):
        kind, data = scalar(value)
        return struct.pack("<I", kind) + data
    items = [scalar(item, whole=I32) for item in value]
    return struct.pack("<IIQ", ARRAY, items[0][0], len(items)) + b"".join(data for _, data in items)


def aligned(n):
    return -(-n // ALIGNMENT) * ALIGNMENT


def write(path, fields, tensors):
    """`tensors` are arrays by name; the last axis is the one that ggml calls the first."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(text(name) + field(value) for name, value in fields.items())
    at = 0
    for name, values in tensors.items():
        shape = values.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, at)
        at += aligned(values.nbytes)
    with open(path, "wb") as file:
        file.write(head.ljust(aligned(len(head)), b"\0"))
        for values in tensors.values():
            file.write(values.astype(np.float32).tobytes().ljust(aligned(values.nbytes), b"\0"))
