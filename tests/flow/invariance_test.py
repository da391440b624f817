"""The same request gives the same tokens alone, among others, again, and in other micro-batches: with 16-bit rows.

A model with random weights wanders off at the smallest difference. What packing policies promise, and what they do not,
is in docs/llama-cpp.md.
"""

import concurrent.futures

import pytest

import llama
from shapes import models

N_TOKENS = 60


def prompts():
    text = llama.TEXT.read_text()
    return [text[5000 * i:5000 * i + n] for i, n in enumerate([300, 420, 510, 370], 1)]


class Slots:
    """A server of four slots, each asked one of the prompts."""

    def __init__(self, folder, model, *arguments, policy):
        self.server = llama.Server(folder, "-np", "4", "-c", "4096", "-b", "512", "--cache-ram", "0", *arguments,
                                   policy=policy, model=model)

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)

    def ask(self, slot):
        return self.server.complete(prompts()[slot], n_predict=N_TOKENS, ignore_eos=True, return_tokens=True,
                                    cache_prompt=False, id_slot=slot)["tokens"]

    def one_by_one(self):
        return [self.ask(slot) for slot in range(4)]

    def at_once(self):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(self.ask, range(4)))


@pytest.mark.parametrize("name", ["llama-gqa3-d64", "jamba"])
@pytest.mark.parametrize("form", ["-kvu", "-no-kvu"])
def test_sixteen_bit_rows_answer_alike_in_every_company(tmp_path, form, name):
    model = models.make(name, tmp_path)
    with Slots(tmp_path, model, form, "-ub", "64", policy="f16") as slots:
        alone = slots.one_by_one()
        assert all(len(tokens) == N_TOKENS for tokens in alone)
        assert slots.one_by_one() == alone, "the slots had been used before"
        assert slots.at_once() == alone
    with Slots(tmp_path, model, form, "-ub", "512", policy="f16") as slots:
        assert slots.at_once() == alone


def test_packing_answers_alike_where_nothing_was_before(tmp_path):
    # Two servers, the same requests one by one: what is packed depends on them and on nothing else.
    model = models.make("llama-gqa3-d64", tmp_path)
    answers = []
    for _ in range(2):
        with Slots(tmp_path, model, "-no-kvu", "-ub", "64", policy="zip") as slots:
            answers.append(slots.one_by_one())
    assert answers[0] == answers[1]
