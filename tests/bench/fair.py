"""What one user who floods a model server costs the others, with and without llm-queue; tests/bench/README.md says how to read it.

Drives the nginx test host at PROXY_URL and ADMIN_URL, which must have nothing else to do, in front of fair_server.py. Every load runs
alone first, without the greedy users, then with them in each MODE. Prints a table and writes what it found to --output.
"""
import argparse
import asyncio
import dataclasses
import json
import math
import os
import random
import statistics
import time
import urllib.error
import urllib.request

import fair_server

PLUGIN = "plugins/00000000-0000-4000-8000-000000000002"
SHORT, LONG = 40, 1000  # words of a prompt
NOBODY_WAITS = 100_000
MOST_OF_IDLE = 1.5
LEAST_OF_THROUGHPUT = 0.9


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    people: int = 20
    every_seconds: float = 3
    greedy: int = 1
    in_flight: int = 256
    long_share: float = 0
    greedy_class: str = "interactive"
    people_tokens: int = 16
    greedy_tokens: int = 128


LOADS = [
    Load("one greedy user, 20 people"),
    Load("5 greedy users, 45 people", people=45, greedy=5, in_flight=50),
    Load("long prompts among short ones", long_share=0.25),
    Load("a batch user, 20 people", greedy_class="batch"),
]

ALONE, WITHOUT = "without the greedy", "no llm-queue"
# llm-queue's settings; None: it is not there.
MODES = {
    ALONE: None,
    WITHOUT: None,
    "priority alone": {"in_flight": NOBODY_WAITS, "priority": True},
    "llm-queue": {"in_flight": fair_server.PLACES},
    "llm-queue and priority": {"in_flight": fair_server.PLACES, "priority": True},
}


# --- the gateway -------------------------------------------------------------------------------------------------------------------

def admin(method, path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(f"{os.environ['ADMIN_URL']}/{path}", data, {"Content-Type": "application/json"}, method=method)
    try:
        urllib.request.urlopen(asked, timeout=10).close()
    except urllib.error.HTTPError as failed:
        if method != "DELETE" or failed.code != 404:
            raise SystemExit(f"{method} {path}: {failed.code} {failed.read().decode()}") from None


def configure(port):
    admin("PUT", "services/vllm", {"host": "127.0.0.1", "port": port, "retries": 0, "read_timeout": 600_000})
    admin("PUT", "services/vllm/routes/all", {"paths": ["/v1"], "strip_path": False, "response_buffering": False})
    admin("PUT", "plugins/00000000-0000-4000-8000-000000000001",
          {"name": "key-auth", "service": {"name": "vllm"}, "config": {"key_names": ["X-API-Key"]}})
    # Tells llm-queue how many tokens a call took, for priority.
    admin("PUT", "plugins/00000000-0000-4000-8000-000000000003", {"name": "llm-audit", "config": {"capture": "metadata"}})
    names = [f"person{n}" for n in range(max(load.people for load in LOADS))]
    names += [f"{load.greedy_class}{n}" for load in LOADS for n in range(load.greedy)]
    for name in dict.fromkeys(names):
        tags = ["class:batch"] if name.startswith("batch") else []
        admin("PUT", f"consumers/{name}", {})
        admin("POST", f"consumers/{name}/key-auth", {"key": name, "tags": tags})


def set_queue(config):
    if config is None:
        admin("DELETE", PLUGIN)
    else:
        config = {"max_waiting_per_user": 1000, "max_wait_seconds": 600, **config}
        admin("PUT", PLUGIN, {"name": "llm-queue", "service": {"name": "vllm"}, "config": config})


# --- callers -----------------------------------------------------------------------------------------------------------------------

class Run:
    """One load in one mode, and what came of it after the warm-up."""

    def __init__(self, load, proxy, warm_up, seconds):
        self.load, self.proxy = load, proxy
        self.begin = time.monotonic() + warm_up
        self.end = self.begin + seconds
        self.seconds = seconds
        self.random = random.Random(1)
        self.first_tokens, self.unanswered = [], []
        self.tokens = {"people": 0, "greedy": 0}
        self.calls = {"people": 0, "greedy": 0}
        self.refused = self.broken = 0

    def counts(self, moment):
        return self.begin <= moment < self.end

    def prompt(self):
        return "word " * (LONG if self.random.random() < self.load.long_share else SHORT)

    async def call(self, who, user, tokens):
        body = json.dumps({"model": "m", "stream": True, "max_tokens": tokens,
                           "messages": [{"role": "user", "content": self.prompt()}]})
        began, first, status = time.monotonic(), None, b""
        try:
            reader, writer = await asyncio.open_connection(*self.proxy)
            try:
                writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nX-API-Key: {user}\r\nConnection: close\r\n"
                             f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                status = (await reader.readline())[9:12]
                last = b""
                async for line in reader:
                    if line.startswith(b"data: {") and b'"content"' in line:
                        now = time.monotonic()
                        first = first or now
                        self.tokens[who] += self.counts(now)
                    last = line if line.startswith(b"data:") else last
                whole = last.startswith(b"data: [DONE]")
            finally:
                writer.close()
        except asyncio.CancelledError:
            if who == "people" and first is None:
                self.unanswered.append(time.monotonic() - began)
            raise
        except OSError:
            whole = False
        if status == b"429":
            self.refused += 1
        elif not whole:
            self.broken += 1
        else:
            self.calls[who] += self.counts(time.monotonic())
        if who == "people" and first and self.counts(first):
            self.first_tokens.append(first - began)

    async def person(self, n):
        """One call after the other, at most one every so many seconds."""
        await asyncio.sleep(self.load.every_seconds * self.random.random())
        while True:
            due = time.monotonic() + self.load.every_seconds * self.random.uniform(0.8, 1.2)
            await self.call("people", f"person{n}", self.load.people_tokens)
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def flood(self, n):
        while True:
            await self.call("greedy", f"{self.load.greedy_class}{n}", self.load.greedy_tokens)

    async def measure(self, with_greedy):
        tasks = [asyncio.ensure_future(self.person(n)) for n in range(self.load.people)]
        if with_greedy:
            tasks += [asyncio.ensure_future(self.flood(n)) for n in range(self.load.greedy) for _ in range(self.load.in_flight)]
        done, _ = await asyncio.wait(tasks, timeout=self.end - time.monotonic(), return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def result(self):
        # A call that was still waiting took at least as long as it had waited.
        waits = sorted(self.first_tokens + self.unanswered)
        p95 = waits[min(math.ceil(0.95 * len(waits)), len(waits)) - 1] if waits else None
        return {
            "p50_seconds": statistics.median(waits) if waits else None,
            "p95_seconds": p95,
            "p95_is_more": p95 is not None and any(wait <= p95 for wait in self.unanswered),
            "people_calls": self.calls["people"],
            "greedy_calls": self.calls["greedy"],
            "unanswered": len(self.unanswered),
            "refused": self.refused,
            "broken": self.broken,
            "calls_a_second": sum(self.calls.values()) / self.seconds,
            "tokens_a_second": sum(self.tokens.values()) / self.seconds,
        }


def wait_until_idle(server_url):
    """What the last run left has to be gone: its clients hung up."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{server_url}/idle", timeout=10).close()
            return
        except urllib.error.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the model server still has calls 30 s after their clients hung up")


# --- table -------------------------------------------------------------------------------------------------------------------------

def judge(result, alone, without):
    def ratio(of, other):
        return of / other if of and other else None

    result["first_token_of_idle"] = ratio(result["p95_seconds"], alone["p95_seconds"])
    for unit in ("calls", "tokens"):
        name = f"{unit}_a_second"
        result[f"{unit}_of_without"] = ratio(result[name], without[name]) if without else None


def line(mode, result):
    first, ratio = "-", result["first_token_of_idle"]
    if ratio:
        more = ">" if result["p95_is_more"] else ""
        first = f"{result['p50_seconds']:.3f}  {more}{result['p95_seconds']:.3f}  {more}{ratio:.1f}x"
    rates = ""
    for unit in ("calls", "tokens"):
        of_without = result[f"{unit}_of_without"]
        rates += f"{result[f'{unit}_a_second']:>8.1f}" + (f" {of_without:>5.2f}x" if of_without else " " * 7)
    trouble = "".join(f"  {result[what]} {what}" for what in ("refused", "broken") if result[what])
    return f"  {mode:<24}{first:<28}{result['people_calls']:>6}{result['greedy_calls']:>8}  {rates}{trouble}"


def is_wanted(name, value):
    return value <= MOST_OF_IDLE if name == "first_token_of_idle" else value >= LEAST_OF_THROUGHPUT


def targets(results):
    """Each measurement with llm-queue, and whether it is as good as is wanted; by calls a second and by tokens."""
    found = []
    for load, modes in results.items():
        for mode, result in modes.items():
            if mode.startswith("llm-queue"):
                values = {name: result[name] for name in ("first_token_of_idle", "calls_of_without", "tokens_of_without")}
                met = {name: value is not None and is_wanted(name, value) for name, value in values.items()}
                found.append({"load": load, "mode": mode, "values": values, "met": met})
    return found


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--server", type=int, required=True, help="port of fair_server.py")
    arguments.add_argument("--output", required=True)
    arguments.add_argument("--seconds", type=float, default=20, help="of each measurement")
    arguments.add_argument("--warm-up", type=float, default=8, help="seconds before each that do not count")
    arguments.add_argument("--load", action="append", type=int, choices=range(1, len(LOADS) + 1), help="only this one; may be repeated")
    asked = arguments.parse_args()

    configure(asked.server)
    host, port = os.environ["PROXY_URL"].removeprefix("http://").split(":")
    results = {}
    for number, load in enumerate(LOADS, 1):
        if asked.load and number not in asked.load:
            continue
        print(f"\n{load.name}")
        print(f"  {'seconds and calls':<24}{'first token p50, p95':<28}{'people':>6}{'greedy':>8}{'calls/s':>10}{'tokens/s':>15}",
              flush=True)
        of_load = results[load.name] = {}
        for mode, config in MODES.items():
            set_queue(config)
            run = Run(load, (host, int(port)), asked.warm_up, asked.seconds)
            await run.measure(mode != ALONE)
            wait_until_idle(f"http://127.0.0.1:{asked.server}")
            of_load[mode] = run.result()
            judge(of_load[mode], of_load[ALONE], of_load.get(WITHOUT))
            print(line(mode, of_load[mode]), flush=True)

    found = {"machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
             "server": {"places": fair_server.PLACES, "step_seconds": fair_server.STEP_SECONDS,
                        "prompt_tokens_a_second": fair_server.PROMPT_TOKENS_A_SECOND},
             "loads": [dataclasses.asdict(load) for load in LOADS],
             "results": results, "targets": targets(results)}
    with open(asked.output, "w", encoding="utf-8") as output:
        json.dump(found, output, indent=2)
    print(f"\nwanted: p95 at most {MOST_OF_IDLE} times that without the greedy, calls and tokens a second at least "
          f"{LEAST_OF_THROUGHPUT} of no llm-queue")
    for target in found["targets"]:
        missed = [name for name, is_met in target["met"].items() if not is_met]
        print(f"  {target['load']}, {target['mode']}: {'missed ' + ', '.join(missed) if missed else 'met'}")
    print(f"load average {found['machine']['load_average']:.1f} on {found['machine']['cores']} cores; written to {asked.output}")


if __name__ == "__main__":
    asyncio.run(main())
