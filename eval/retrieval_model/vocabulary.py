"""The model's vocabulary: whole words of the tasks, and every byte for any other text.

A text is cut greedily: at each place the longest piece that fits. llama.cpp does the same with
vocabularies of the type "rwkv"; nothing else of that model family is used.
"""

import re

import lines
import tasks

END = "<end>"  # number 0; also what fills up a batch


def _pieces():
    words = set(re.findall(r" ?[A-Za-z_]+", tasks.EVERY_PHRASE)) | {lines.BETWEEN}
    words |= {" " + word for word in lines.ADJECTIVES + lines.NOUNS}
    words |= {"-" + word for word in lines.NOUNS}
    return sorted(word.encode() for word in words if len(word) > 1)


PIECES = [END.encode()] + [bytes([byte]) for byte in range(256)] + _pieces()
IDS = {piece: number for number, piece in enumerate(PIECES) if number > 0}
_LONGEST = re.compile(b"|".join(re.escape(piece) for piece in sorted(IDS, key=len, reverse=True)), re.DOTALL)


def encode(text):
    return [IDS[piece] for piece in _LONGEST.findall(text.encode())]


def decode(ids):
    return b"".join(PIECES[number] for number in ids).decode(errors="replace")
