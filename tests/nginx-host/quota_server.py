#!/usr/bin/env python3
"""Both ends for the test of llm-quota: a model server, and a collector that counts.

    quota_server.py FOLDER    prints the port it listens on (loopback)

Model server: POST answers for chat completions, completions, messages and embeddings. Request headers say how: X-Tokens: PROMPT,COMPLETION
is the usage that it reports (none with X-Tokens: none), X-Slow: milliseconds, X-Gzip: 1, X-Status: code. It appends the request's
body as one line to FOLDER/asked. While there is a file FOLDER/hold, it answers no call but those whose model is NAME of a file
FOLDER/go.NAME.

Collector: POST /log appends entries to FOLDER/entries, one a line; POST /sync answers as docs/contract.md has it, from these entries
and from FOLDER/limits.json: {"limits", "prices", "windows"}. Its version is how many entries are counted. The last request is in
FOLDER/sync. While there is a file FOLDER/away, both answer 503.
"""

import gzip
import json
import os
import sys
import threading
import time
from datetime import datetime, timezone

from stub import Stub, serve

FOLDER = sys.argv[1]
LOCK = threading.Lock()
ENTRIES = []


def path(name):
    return os.path.join(FOLDER, name)


def windows():
    now = datetime.now(timezone.utc)
    day = int(now.replace(hour=0, minute=0, second=0, microsecond=0).timestamp())
    hour = int(now.replace(minute=0, second=0, microsecond=0).timestamp())
    month = int(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())
    return {"hour": [hour + 3600 * i for i in range(50)], "day": [day + 86400 * i for i in range(9)],
            "week": [day - 86400 * now.weekday() + 604800 * i for i in range(4)], "month": [month, month + 31 * 86400]}


def charge(limit, entry):
    """What an entry takes of a limit."""
    llm = entry["llm"]
    if "upstream_status" not in entry or entry["upstream_status"] == "":
        return 0
    if limit["unit"] == "calls":
        return 1
    usage = llm.get("usage") or llm.get("estimated") or {}
    return usage.get("prompt_tokens", usage.get("input_tokens", 0)) + usage.get("completion_tokens", usage.get("output_tokens", 0))


def subject(limit, entry):
    """Whom an entry is counted for; None: not under this limit."""
    user = (entry.get("consumer") or {}).get("username", "anonymous")
    if limit["subject"] == "everybody":
        return ""
    if limit["subject"] == "each_user" or limit.get("name") == user:
        return user
    return None


def count(limits, starts, entries):
    sums = {}
    for limit in limits:
        for entry in entries:
            who = subject(limit, entry)
            at = entry["started_at"] / 1000
            begun = [start for start in starts[limit["per"]] if start <= at]
            if who is not None and begun:
                key = (limit["id"], who, begun[-1])
                sums[key] = sums.get(key, 0) + charge(limit, entry)
    return [[*key, amount] for key, amount in sums.items() if amount]


def numbers(entries, workers):
    return {worker: [[e["llm"]["seq"]] * 2 for e in entries if e["llm"]["worker"] == worker] for worker in workers}


def synced(asked):
    settings = json.load(open(path("limits.json")))
    revision = json.dumps(settings)
    limits, starts = settings["limits"], {**windows(), **settings.get("windows", {})}
    version = asked.get("version", "")
    is_full = asked.get("revision") != revision or not version.isdigit() or int(version) > len(ENTRIES)
    new = ENTRIES if is_full else ENTRIES[int(version):]
    answer = {"version": str(len(ENTRIES)), "revision": revision, "full": is_full, "zone": "UTC",
              "used": count(limits, starts, new), "counted": numbers(new, asked.get("workers", []))}
    if is_full:
        answer.update(limits=limits, windows=starts, prices=settings.get("prices", []))
    return answer


class Handler(Stub):

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path in ("/log", "/sync"):
            self.collect(json.loads(body))
        else:
            self.generate(body)

    def collect(self, told):
        if os.path.exists(path("away")):
            return self.answer(503, b"{}")
        with LOCK:
            if self.path == "/sync":
                with open(path("sync.new"), "w") as file:
                    json.dump(told, file)
                os.rename(path("sync.new"), path("sync"))
                answer = {"v": 1}
                if "quota" in told:
                    answer["quota"] = synced(told["quota"])
                return self.answer(200, json.dumps(answer).encode())
            with open(path("entries"), "a") as file:
                for entry in told if isinstance(told, list) else [told]:
                    ENTRIES.append(entry)
                    file.write(json.dumps(entry) + "\n")
        self.answer(200, b"{}")

    def generate(self, body):
        with LOCK, open(path("asked"), "ab") as file:
            file.write(body + b"\n")
        asked = json.loads(body)
        if "X-Vllm-Priority" in self.headers:
            with LOCK, open(path("priorities"), "a") as file:
                file.write(self.headers["X-Vllm-Priority"] + "\n")
        while os.path.exists(path("hold")) and not os.path.exists(path(f"go.{asked['model']}")):
            time.sleep(0.01)
        time.sleep(int(self.headers.get("X-Slow", 0)) / 1000)
        status = int(self.headers.get("X-Status", 200))
        if status != 200:
            return self.answer(status, b'{"error":{"message":"no","type":"x","param":null,"code":null}}')
        tokens = self.headers.get("X-Tokens", "5,7")
        prompt, completion = (0, 0) if tokens == "none" else map(int, tokens.split(","))
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        if self.path.endswith("/messages"):
            answer = {"id": "m", "type": "message", "role": "assistant", "model": asked["model"], "stop_reason": "end_turn",
                      "stop_sequence": None, "content": [{"type": "text", "text": "Hello."}],
                      "usage": {"input_tokens": prompt, "output_tokens": completion}}
        else:
            message = {"role": "assistant", "content": "Hello."}
            answer = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"], "usage": usage,
                      "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        if tokens == "none":
            del answer["usage"]
        if asked.get("stream"):
            return self.stream(answer)
        text = json.dumps(answer).encode()
        if self.headers.get("X-Gzip"):
            return self.answer(200, gzip.compress(text), more=[("Content-Encoding", "gzip")])
        self.answer(200, text)

    def stream(self, answer):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": answer["model"]}
        deltas = [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo."}, {}]
        events = [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]} for delta in deltas]
        if "usage" in answer:
            events.append({**base, "choices": [], "usage": answer["usage"]})
        try:
            for event in events:
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                time.sleep(int(self.headers.get("X-Between", 0)) / 1000)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass


serve(Handler)
