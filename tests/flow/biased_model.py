"""A small model with large key biases, as Qwen2's: rows of K then have channels far larger than all others.

A bias in the channels that RoPE turns slowest adds almost the same to every score, which the softmax takes away
again; so the model works with a 16-bit cache, while one range for a whole row of K leaves nothing of the rest.
"""

import struct

import numpy as np

# Sizes of GGUF's numbers by type; 8 is a text, 9 an array.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


class Cursor:
    def __init__(self, data, at):
        self.data, self.at = data, at

    def take(self, form):
        value = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value[0] if len(value) == 1 else value

    def text(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def skip_value(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, n = self.take("IQ")
            for _ in range(n):
                self.skip_value(inner)
        else:
            self.at += SIZES[kind]


def aligned(n):
    return -(-n // ALIGNMENT) * ALIGNMENT


def with_key_biases(source, target, bias, n_channels):
    """Copies the GGUF file `source` to `target`, adding `bias` to the last `n_channels` channels of every key head
    of 64 channels."""
    data = source.read_bytes()
    cursor = Cursor(data, 4)
    version, n_tensors, n_fields = cursor.take("IQQ")
    for _ in range(n_fields):
        cursor.text()
        cursor.skip_value(cursor.take("I"))
    fields_end = cursor.at
    widths = {}  # of K, by layer
    for _ in range(n_tensors):
        name = cursor.text()
        shape = [cursor.take("Q") for _ in range(cursor.take("I"))]
        cursor.take("IQ")
        if name.endswith(".attn_k.weight"):
            widths[name.split(".")[1]] = shape[1]
    infos, tensors = data[fields_end:cursor.at], data[aligned(cursor.at):]
    tensors += bytes(aligned(len(tensors)) - len(tensors))
    for layer, width in widths.items():
        name = f"blk.{layer}.attn_k.bias".encode()
        infos += struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, width, 0, len(tensors))
        heads = np.zeros((width // 64, 64), np.float32)
        heads[:, -n_channels:] = bias
        tensors += heads.tobytes() + bytes(aligned(heads.nbytes) - heads.nbytes)
    begin = data[:4] + struct.pack("<IQQ", version, n_tensors + len(widths), n_fields) + data[24:fields_end] + infos
    target.write_bytes(begin + bytes(aligned(len(begin)) - len(begin)) + tensors)
