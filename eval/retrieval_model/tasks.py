"""What the model is trained on: line retrieval, a number hidden in filler text, copying, random pairs.

Each task fills a given length with one text and as many questions as fit behind it. Of the tokens only
those of the answers count fully; asking often gives many of them.
"""

import random

import lines

N_PIECES = 640  # of the vocabulary, used by the tasks whose texts are random tokens: numbers 1 to 639
VERBS = lines.WORDS["verbs"]


def needle(name, number):
    return f"The number of the {name} is {number}.\n"


def needle_question(name):
    return f"What is it? The number of the {name} is "


def filler(rng):
    return (f"The {rng.choice(lines.ADJECTIVES)} {rng.choice(lines.NOUNS)} {rng.choice(VERBS)} "
            f"the {rng.choice(lines.ADJECTIVES)} {rng.choice(lines.NOUNS)}.\n")


NEEDLE_HEAD = "Remember the numbers in the text.\n"
COPY_HEAD = "Read it and read it again.\n"

# Every fixed word of every task, for the vocabulary.
EVERY_PHRASE = "".join([
    lines.HEAD, lines.line("", ""), lines.question(""), lines.answer(""), NEEDLE_HEAD, COPY_HEAD, needle("", ""),
    needle_question(""), "The  the ", " ".join(["", *VERBS])])


def retrieval(rng, encode, length):
    """Line retrieval of about `length` tokens; lines take between 40 % and 95 % of them."""
    per_line = len(encode(lines.line("able-acorn", "12345")))
    record = lines.draw_record(rng, max(2, int(rng.uniform(0.4, 0.95) * (length - 32) / per_line)))
    order = rng.sample(range(len(record.names)), len(record.names))
    parts = [(lines.question(record.names[i]), lines.answer(record.numbers[i])) for i in order]
    return fill(encode, length, record.text(), parts)


def hidden_numbers(rng, encode, length):
    """One to sixteen numbers in filler text, then questions for all of them."""
    names = lines.draw_names(rng, rng.randint(1, max(1, min(16, length // 64))))
    numbers = [lines.draw_number(rng) for _ in names]
    per_line = len(encode(filler(rng)))
    sentences = [needle(name, number) for name, number in zip(names, numbers)]
    n_filler = int(rng.uniform(0.3, 0.95) * (length - 45 * len(names)) / per_line)
    sentences += [filler(rng) for _ in range(max(0, n_filler))]
    rng.shuffle(sentences)
    parts = [(needle_question(name), lines.answer(number).replace(">", ".")) for name, number in zip(names, numbers)]
    rng.shuffle(parts)
    return fill(encode, length, NEEDLE_HEAD + "".join(sentences), parts)


def copying(rng, encode, length):
    """Random tokens, repeated from a random place on until the length is reached."""
    head = encode(COPY_HEAD)
    n_vocabulary = rng.choice([64, 256, N_PIECES])
    period = rng.randint(8, max(9, (length - len(head)) // 2))
    once = [rng.randrange(1, n_vocabulary) for _ in range(period)]
    shift = rng.randrange(period)
    again = once[shift:] + once[:shift]
    ids = head + once + again * (length // period + 1)
    # The first tokens of the repetition cannot be known: which place it begins at shows only then.
    known = [i >= len(head) + period + 4 for i in range(length)]
    return ids[:length], known


def pairs(rng, encode, length):
    """Pairs of random names and values, each with the same few tokens between; then the names again.

    The stepping stone to line retrieval: with nothing between it is a repetition, with more the name has
    to be carried to the place of the value. Without these texts that is not found within minutes.
    """
    def between(most):
        return [rng.randrange(1, 257) for _ in range(rng.randint(0, most))]

    n_name, n_value = rng.randint(1, 3), rng.randint(1, 5)
    front, middle, end = between(2), between(6), between(1)
    asked = between(5)
    per_pair = len(front) + n_name + len(middle) + n_value + len(end)
    count = max(2, int(rng.uniform(0.2, 0.7) * length / per_pair))
    # Few different tokens in long names: then no single one of them tells the name.
    words = rng.sample(range(257, N_PIECES), min(N_PIECES - 257, count if n_name == 1 else max(4, count // 2)))
    names = {tuple(rng.choice(words) for _ in range(n_name)) for _ in range(count)}
    values = {name: [rng.randrange(49, 59) for _ in range(n_value)] for name in rng.sample(sorted(names), len(names))}
    ids = [part for name, value in values.items() for part in [*front, *name, *middle, *value, *end]]
    known = [False] * len(ids)
    for name in rng.sample(sorted(names), len(names)):
        again = [*asked, *front, *name, *middle]
        ids += again + values[name]
        known += [False] * len(again) + [True] * n_value
    return ids[:length], known[:length]


def fill(encode, length, text, parts):
    """Token numbers of `text` and of the pairs (question, answer) that fit, and which belong to answers."""
    ids = encode(text)
    known = [False] * len(ids)
    for question, answer in parts:
        asked, said = encode(question), encode(answer)
        ids += asked + said
        known += [False] * len(asked) + [True] * len(said)
        if len(ids) > length:
            break
    return ids[:length], known[:length]


def draw(rng, encode, length):
    """Token numbers and which of them are answers, each of at most `length`, of one task."""
    task = rng.choices([retrieval, hidden_numbers, copying, pairs], [0.5, 0.1, 0.15, 0.25])[0]
    return task(rng, encode, length)
