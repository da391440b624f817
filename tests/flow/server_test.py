"""llama-server on the compressed cache: slots at once, save and restore, prefixes, cancelled requests."""

import concurrent.futures

import pytest

import llama

POLICY = "zip"
N_CELLS = 2048
# With its defaults the server saves and restores idle slots by itself; the second form has a stream
# for each slot and none of that.
FORMS = {"unified": ["-kvu"], "own_streams": ["-no-kvu", "--cache-ram", "0"]}


@pytest.fixture(scope="module", params=FORMS)
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with llama.Server(folder, "-np", "2", "-c", N_CELLS, *FORMS[request.param], policy=POLICY) as it:
        yield it


def check_alive(server):
    assert server.process.poll() is None, server.log()[-3000:]
    assert server.healthy()


def test_the_log_shows_the_smaller_buffer(server):
    f16 = N_CELLS * llama.BYTES_PER_TOKEN_F16 / 2**20
    assert llama.kv_buffer_mib(server.log(), "ZipCache") < f16 / 2


def test_two_slots_answer_at_once_each_from_its_own_text(server):
    tasks = [llama.copy_task(0), llama.copy_task(3)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(server.complete, prompt, id_slot=slot)
                   for slot, (prompt, _) in enumerate(tasks)]
    for answer, (_, expected) in zip(answers, tasks):
        assert answer.result()["content"].startswith(expected)


def test_a_saved_slot_is_restored_into_another_slot(server):
    prompt, expected = llama.copy_task(1)
    first = server.complete(prompt, id_slot=0, cache_prompt=True)
    assert first["content"].startswith(expected)
    saved = server.post("/slots/0?action=save", filename="slot.bin")
    server.post("/slots/0?action=erase")
    restored = server.post("/slots/1?action=restore", filename="slot.bin")
    assert restored["n_restored"] == saved["n_saved"] > 300

    again = server.complete(prompt, id_slot=1, cache_prompt=True)
    assert again["timings"]["prompt_n"] <= 8, "the prompt was computed anew"
    assert again["content"].startswith(expected)


def test_a_common_prefix_is_reused_and_still_answers(server):
    prompt, expected = llama.copy_task(2)
    server.complete(prompt, id_slot=0, cache_prompt=True)
    longer = server.complete(prompt + expected, id_slot=0, cache_prompt=True)
    assert longer["timings"]["prompt_n"] < 40, "the common prefix was computed anew"
    # Back to an earlier word: the newest tokens are written again, over those of the first answer.
    cut = prompt.rindex(" ", 0, -40)
    shorter = server.complete(prompt[:cut], id_slot=0, cache_prompt=True)
    assert shorter["timings"]["prompt_n"] < 40, "the common prefix was computed anew"
    assert shorter["content"].startswith(prompt[cut:cut + 30])


def test_after_a_cancelled_request_the_server_answers(server):
    server.cancel(llama.copy_task(3)[0], id_slot=0)
    prompt, expected = llama.copy_task(0)
    assert server.complete(prompt, id_slot=0)["content"].startswith(expected)
    check_alive(server)
