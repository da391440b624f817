"""Features of llama-server by kind of model: in whatever order it reads and writes its cache, it tells the same.

A scenario ends in texts that the server is made to say (a grammar allows no other). Compared are the probabilities of
all tokens at each place of them: with llama.cpp's own cache, with 16-bit rows, and packed. How many tokens of a prompt
were read anew must be the same for all of them.
"""

import concurrent.futures
import functools
import json
import urllib.error

import numpy as np
import pytest

import llama
from shapes import models

# One of each: all cells seen; windows of 40 tokens in every other layer; state-space layers in every other one.
KINDS = {"all_cells": "llama-gqa3-d64", "windows": "gemma2", "recurrent": "jamba"}
FORMS = {"unified": "-kvu", "own_streams": "-no-kvu"}
PLAIN = "llama.cpp"
# Policies. With 8 bits a row that is lost or mixed up stands out; a saved state carries blocks of 4 bits and not of 8.
CACHES = {PLAIN: None, "f16": "f16", "packed": "zip,bits=8", "packed windows": "zip,bits=8", "4 bits": "zip,bits=4"}
CELLS = [(kind, cache) for kind in KINDS for cache in ["f16", "packed"]] + [("windows", "packed windows")]
# Most that a cache may be off by, in parts of what forgetting the older half of a text does. Seen: 0.023, 0.028
# (packed), 0.17 (4 bits).
BOUNDS = {"f16": 1 / 30, "packed": 1 / 20, "packed windows": 1 / 20, "4 bits": 1 / 2}
FIRST_BYTE = models.VOCABULARY.index("<0x00>")
WORDS = 12


def ids(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


def text(which):
    """Some 400 characters, of which the first 250 are packed once they are read; and what follows them."""
    whole, n = llama.TEXT.read_text()[5000 * (which + 1):], [380, 420, 410, 400][which]
    return whole[:n], whole[n:]


class Teller:
    """Makes a server say texts. Keeps the probabilities at each place, and how many tokens of each prompt were read."""

    def __init__(self, server):
        self.server, self.rows, self.n_read = server, [], []

    def say(self, prompt, words, **fields):
        """`words` after `prompt`, a text or a list of tokens."""
        answers = self.server.complete(
            ids(prompt) if isinstance(prompt, str) else prompt, n_predict=len(words),
            n_probs=len(models.VOCABULARY), grammar=f"root ::= {json.dumps(words)}", **fields)
        for answer in answers if isinstance(answers, list) else [answers]:
            assert answer["content"] == words
            self.n_read.append(answer["timings"]["prompt_n"])
            for place in answer["completion_probabilities"]:
                by_token = sorted(place["top_logprobs"], key=lambda token: token["id"])
                self.rows.append([token["logprob"] for token in by_token])

    def say_at_once(self, asked):
        """A list of (prompt, words, slot)."""
        tellers = [Teller(self.server) for _ in asked]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            list(pool.map(lambda teller, it: teller.say(it[0], it[1], id_slot=it[2]), tellers, asked))
        self.rows += [row for teller in tellers for row in teller.rows]
        self.n_read += [n for teller in tellers for n in teller.n_read]

    def slot(self, number, action, **fields):
        return self.server.post(f"/slots/{number}?action={action}", **fields)


def distance(one, other):
    """Mean difference of log-probabilities, relative to their spread."""
    rows, others = np.array(one.rows), np.array(other.rows)
    assert rows.shape == others.shape and rows.shape[1] == len(models.VOCABULARY)
    return np.abs(rows - others).mean() / rows.std(axis=1).mean()


# --- scenarios for four slots


def at_once(it):
    it.say_at_once([(text(slot)[0], text(slot)[1][:WORDS], slot) for slot in range(4)])


def taking_turns(it):
    """Three texts grow in turn, so that neighbouring cells belong to different ones. One is forgotten; a fourth fills
    its holes, and the others go on."""
    whole = ["".join(text(which)) for which in range(4)]
    for n in [150, 300, 400]:
        for slot in range(3):
            it.say(whole[slot][:n], whole[slot][n:n + 1], id_slot=slot)
    it.slot(1, "erase")
    it.say(whole[3][:400], whole[3][400:400 + WORDS], id_slot=3)
    for slot in [0, 2, 3]:
        it.say(whole[slot][:420], whole[slot][420:420 + WORDS], id_slot=slot)


def saved_and_restored(it):
    prompt, more = text(0)
    it.say(prompt, more[:WORDS], id_slot=0)
    saved = it.slot(0, "save", filename="slot.bin")
    it.slot(0, "erase")
    it.say(text(1)[0], "a", id_slot=1)  # takes over its cells
    assert it.slot(2, "restore", filename="slot.bin")["n_restored"] == saved["n_saved"] > 300
    it.say(prompt + more[:30], more[30:30 + WORDS], id_slot=2)


def gone_back(it):
    """Words before the last are changed: rows are written over, or a checkpoint of window or state is restored."""
    prompt, more = text(0)
    it.say(prompt, more[:WORDS], id_slot=0)
    it.say(prompt[:-20] + more[100:160], more[160:160 + WORDS], id_slot=0)
    assert it.n_read[1] < 200, "everything was read anew"


def several_answers(it):
    """To one prompt, whose cells are copied or come to belong to three sequences."""
    prompt, more = text(2)
    it.say(prompt, more[:WORDS], n_cmpl=3)


def cancelled(it):
    it.server.cancel(ids(text(1)[0]), id_slot=1)
    prompt, more = text(1)
    it.say(prompt + more[:10], more[10:10 + WORDS], id_slot=1)
    it.n_read.clear()  # how far the cancelled answer came is chance


FOUR_SLOTS = (at_once, taking_turns, saved_and_restored, gone_back, several_answers, cancelled)


# --- what is told, and how it is compared


def environment(cache):
    return {"ZIPCACHE_WINDOW": "policy"} if cache == "packed windows" else {}


def serve(folder, cache, model, *arguments):
    # With batches of several micro-batches llama.cpp itself tells something else now and then, from windows that slots
    # share.
    return llama.Server(folder, "-b", "64", "-ub", "64", *arguments, policy=CACHES[cache], env=environment(cache),
                        model=model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def told(folder):
    """told(model, cache, scenarios, *arguments): by scenario a Teller, or the error that it ended in."""
    @functools.cache
    def tell(model, cache, scenarios, *arguments):
        found = {}
        with serve(folder, cache, models.make(model, folder), *arguments) as server:
            for scenario in scenarios:
                teller = Teller(server)
                try:
                    for slot in server.get("/slots"):
                        teller.slot(slot["id"], "erase")
                    scenario(teller)
                    found[scenario] = teller
                except Exception as error:  # pylint: disable=broad-except
                    answer = error.read() if isinstance(error, urllib.error.HTTPError) else b""
                    found[scenario] = AssertionError(f"{cache}: {error!r} {answer}\n{server.log()[-1500:]}")
        return found
    return tell


def forwards(it):
    it.say(text(0)[0], text(0)[1][:WORDS])


def backwards(it):
    prompt, more = text(0)
    it.say(prompt[:256][::-1] + prompt[256:], more[:WORDS])


@pytest.fixture(scope="module")
def check_near(told):
    """Whether what a cache told is what llama.cpp's own cache tells, as near as 16 bits are or packing is."""
    @functools.cache
    def memory(model):
        """What a cache that forgot everything old would be off by."""
        found = told(model, PLAIN, (forwards, backwards), "-np", "1", "-c", "1024")
        return distance(found[forwards], found[backwards])

    def check(model, cache, plain, ours):
        assert 0 < distance(ours, plain) < BOUNDS[cache] * memory(model)
    return check


@pytest.fixture(scope="module")
def compare(told, check_near):
    """Plays a scenario with a cache and with llama.cpp's own; the Teller of the first, for more."""
    def compare(model, cache, scenario, *arguments, among=None):
        plain, ours = (told(model, name, among or (scenario,), *arguments)[scenario] for name in [PLAIN, cache])
        for result in [plain, ours]:
            if isinstance(result, Exception):
                raise result
        assert ours.n_read == plain.n_read
        check_near(model, cache, plain, ours)
        return ours
    return compare


def four_slots(form):
    return "-np", "4", "-c", "4096", "--cache-ram", "0", FORMS[form]


@pytest.mark.parametrize("kind, cache", CELLS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scenario", FOUR_SLOTS, ids=lambda it: it.__name__)
def test_four_slots(compare, told, scenario, form, kind, cache):
    if (scenario, form, kind) == (several_answers, "unified", "windows"):
        # llama.cpp does not write over a window's cells that several sequences share.
        for name in [PLAIN, cache]:
            found = told(KINDS[kind], name, FOUR_SLOTS, *four_slots(form))[scenario]
            assert "Context size has been exceeded" in str(found)
    else:
        compare(KINDS[kind], cache, scenario, *four_slots(form), among=FOUR_SLOTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_slots_saved_as_blocks(compare, form, kind):
    compare(KINDS[kind], "4 bits", saved_and_restored, *four_slots(form))


def three_conversations(it):
    """In two slots, so that the server itself saves one that waits, and restores it."""
    for which in [0, 1, 2]:
        it.say(text(which)[0], text(which)[1][:WORDS])
    prompt, more = text(0)
    it.say(prompt + more[:30], more[30:30 + WORDS])


@pytest.mark.parametrize("kind, cache", CELLS + [(kind, "4 bits") for kind in KINDS])
def test_idle_slots(compare, kind, cache):
    ours = compare(KINDS[kind], cache, three_conversations, "-np", "2", "-c", "2048", "-kvu")
    assert ours.n_read[3] < 100, "the first conversation was read anew"


def shorter_then_full(it):
    """The beginning of a text is left out and its end moves there; then words are added until the slot is full."""
    whole = "".join(text(1))
    it.say(whole[:500], "a", id_slot=1)
    it.say(whole[:40] + whole[100:500], whole[500:590], id_slot=1)
    assert it.n_read[1] < 100, "the moved words were read anew"
    assert llama.lines_with(it.server.log(), "slot context shift")
    assert not llama.lines_with(it.server.log(), "sliding-window"), "caches as large as the others are no windows"


# llama.cpp moves nothing in windows unless they are as large as the rest. States stay what they are.
MOVED = {"llama-gqa3-d64": [], "gemma3": ["--swa-full"], "gpt-oss": ["--swa-full"], "mimo2": ["--swa-full"],
         "deepseek2-plain": [], "mpt": [], "jamba": [], "lfm2": []}


@pytest.mark.parametrize("cache", ["f16", "packed"])
@pytest.mark.parametrize("model", MOVED)
def test_words_that_move(compare, model, cache):
    compare(model, cache, shorter_then_full, "-np", "2", "-c", "1024", "-no-kvu", "--cache-ram", "0", "--context-shift",
            "--cache-reuse", "32", *MOVED[model])


# --- drafts


def spell(it, prompt, words):
    """Words one by one: where llama-server drafts it gives no probabilities, and one word it does not draft."""
    for i in range(len(words)):
        it.say(prompt + ids(words[:i]), words[i])


def check_drafts(it, plain, check):
    """The server guesses words as it likes, then fails to guess given ones; what is in the cache then is read."""
    prompt, more = text(0)
    free = it.server.complete(ids(prompt), n_predict=60, ignore_eos=True, return_tokens=True)
    begin = ids(prompt) + free["tokens"]
    given = more[:30]
    failed = it.server.complete(begin, n_predict=len(given), grammar=f"root ::= {json.dumps(given)}")["timings"]
    assert failed["draft_n"] > 10 and failed["draft_n_accepted"] < 0.5 * failed["draft_n"]
    spell(it, begin + ids(given), more[30:30 + WORDS])
    plain.say(begin + ids(given), more[30:30 + WORDS])
    check(plain, it)
    return free["timings"]


@pytest.mark.parametrize("draft", ["same", "other"])
@pytest.mark.parametrize("kind, cache", CELLS)
def test_a_draft_model(folder, check_near, kind, cache, draft):
    model = models.make(KINDS[kind], folder)
    drafting = model if draft == "same" else models.MODELS[KINDS[kind]](f"{KINDS[kind]}-draft").write(folder)
    arguments = ["--spec-type", "draft-simple", "-md", drafting, "--device-draft", "ZipCache0", "-ngld", "99",
                 "--spec-draft-n-max", "6"]
    with serve(folder, PLAIN, model, "-np", "1", "-c", "1024") as plain, \
            serve(folder, cache, model, "-np", "1", "-c", "1024", *arguments) as server:
        timings = check_drafts(Teller(server), Teller(plain), functools.partial(check_near, KINDS[kind], cache))
    assert timings["draft_n"] > 10
    assert draft == "other" or timings["draft_n_accepted"] > 0.8 * timings["draft_n"]


@pytest.mark.parametrize("cache", ["f16", "packed"])
def test_a_model_that_drafts_for_itself(folder, check_near, cache):
    # Its last layer guesses the token after the next; it has a cache of its own, beside the others.
    model = models.make("mimo2-nextn", folder)
    with serve(folder, PLAIN, model, "-np", "1", "-c", "1024") as plain, \
            serve(folder, cache, model, "-np", "1", "-c", "1024", "--spec-type", "draft-mtp") as server:
        timings = check_drafts(Teller(server), Teller(plain), functools.partial(check_near, "mimo2-nextn", cache))
    assert timings["draft_n"] > 10


# --- prompt files


@pytest.mark.parametrize("kind, cache", CELLS + [(kind, "4 bits") for kind in KINDS])
def test_prompt_files(tmp_path, folder, kind, cache):
    def complete():
        done = llama.run(
            "llama-completion", "-m", models.make(KINDS[kind], folder), "-p", text(0)[0], "-n", "24", "-c", "2048",
            "-ub", "64", "-t", llama.THREADS, "--temp", "0", "-no-cnv", "--no-display-prompt", "--ignore-eos",
            "--prompt-cache", tmp_path / "prompt.bin", *llama.WITH_ZIPCACHE, policy=CACHES[cache],
            env=environment(cache))
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    first, again = complete(), complete()
    assert llama.lines_with(again.stderr, "session file")
    # On a busy machine the program may end before its last words are written.
    assert first.stdout[:16] == again.stdout[:16] != ""
