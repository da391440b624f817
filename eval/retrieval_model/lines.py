"""Line retrieval: a record of named lines, each with a number, and a question for one of them.

The task of the paper's Figure 5 (LongEval's "lines"), in wording of our own. Training and every
evaluation take their texts from here. Nothing but the standard library is needed.

    python3 lines.py --lines 10,50,100,200 --samples 30 > lines.jsonl

writes samples as `zipcache eval retrieval` reads them, one JSON object a line.
"""

import argparse
import dataclasses
import json
import pathlib
import random

# Shared with the generator of `zipcache eval passkey` and `needle`; the model's vocabulary is made of them.
WORDS = json.loads(pathlib.Path(__file__).with_name("words.json").read_text())
ADJECTIVES, NOUNS = WORDS["adjectives"], WORDS["nouns"]

HEAD = "Remember the REGISTER_CONTENT of each line.\n"
BETWEEN = ": REGISTER_CONTENT is <"
N_DIGITS = 5
SEED = "held-out"  # of evaluations; training never used it


def line(name, number):
    return f"line {name}{BETWEEN}{number}>\n"


def question(name):
    """Ends where the number has to follow."""
    return f"What is the number of this line?\nline {name}{BETWEEN}"


def answer(number):
    return f"{number}>\n"


@dataclasses.dataclass
class Record:
    names: list
    numbers: list

    def text(self):
        return HEAD + "".join(map(line, self.names, self.numbers))

    def prompt(self, which):
        """The record and the question for line `which`; `numbers[which]` has to follow."""
        return self.text() + question(self.names[which])


def draw_names(rng, count):
    """`count` names, all different; adjectives and nouns alone repeat, so both are needed."""
    picks = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[pick // len(NOUNS)]}-{NOUNS[pick % len(NOUNS)]}" for pick in picks]


def draw_number(rng):
    return str(rng.randrange(10 ** (N_DIGITS - 1), 10 ** N_DIGITS))


def draw_record(rng, n_lines):
    return Record(draw_names(rng, n_lines), [draw_number(rng) for _ in range(n_lines)])


def samples(seed, n_lines, count):
    """`count` pairs of prompt and number, one question for each record, any line equally likely."""
    for i in range(count):
        rng = random.Random(f"{seed}/{n_lines}/{i}")
        record = draw_record(rng, n_lines)
        which = rng.randrange(n_lines)
        yield record.prompt(which), record.numbers[which]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", default="10,50,100,200", help="numbers of lines, with commas")
    parser.add_argument("--samples", type=int, default=30, help="records for each number of lines")
    parser.add_argument("--seed", default=SEED)
    options = parser.parse_args()
    for n_lines in map(int, options.lines.split(",")):
        for prompt, number in samples(options.seed, n_lines, options.samples):
            print(json.dumps({"lines": n_lines, "seed": options.seed, "prompt": prompt, "answer": number}))


if __name__ == "__main__":
    main()
