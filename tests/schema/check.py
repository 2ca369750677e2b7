#!/usr/bin/env python3
"""Holds docs/schema/ to what is sent: recorded entries, the contract's examples, and what the plugin says on the nginx test host.

    .test/venv/bin/python tests/schema/check.py

Needs jsonschema (tests/tools.sh test) and what the test host needs.
"""

import copy
import json
import os
import re
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

PROJECT = Path(__file__).resolve().parents[2]
SCHEMAS = {path.name: json.loads(path.read_text()) for path in (PROJECT / "docs/schema").glob("*.json")}
REGISTRY = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())
CONTRACT = (PROJECT / "docs/contract.md").read_text()
WAIT_SECONDS = 30

# One of each member that a schema describes.
ENTRY = {
    "started_at": 1795716662376, "client_ip": "192.0.2.7", "source": "upstream", "upstream_uri": "/v1/responses",
    "upstream_status": "200",
    "request": {"id": "3fa7c1", "uri": "/v1/responses", "url": "http://gateway/v1/responses", "method": "POST",
                "headers": {"host": "gateway", "accept": ["a", "b"]}, "querystring": {"a": "b"}, "size": 120, "body": "{}"},
    "response": {"status": 200, "headers": {"content-type": "application/json"}, "size": 300, "body": "e30="},
    "latencies": {"kong": 1, "proxy": 12.5, "request": 13, "receive": 0},
    "tries": [{"ip": "10.0.0.1"}],
    "consumer": {"id": "5c9f", "username": "alice", "custom_id": "a", "tags": ["team:ml"]},
    "route": {"id": "r"}, "service": {"id": "s"},
    "llm": {"v": 1, "stream": False, "ttft_ms": 12, "request_bytes": 2, "response_bytes": 2, "request_truncated": False,
            "response_truncated": True, "response_left_out": "logprobs", "aborted": False, "api": "responses", "model_asked": "m",
            "stream_asked": False, "unread": "encoded", "estimated": {"prompt_tokens": 1, "completion_tokens": 2}, "seq": 7,
            "worker": "4711-1-ab", "model": "m", "usage": {"input_tokens": 3}, "repeat": True, "backend": "10.0.0.1:8000",
            "refused_by": "router", "shed": True, "queue_ms": 1250},
}
REQUEST = {
    "v": 1, "node": "gateway-1:8111",
    "workers": [{"worker": "4711-1-ab", "seq": 204, "done": 198, "ended": False}],
    "refused_calls": [{"client_ip": "192.0.2.7", "minute": 1795716240, "status": 401, "count": 40}],
    "refused_users": [{"user": "alice", "refused_by": "quota", "minute": 1795716240, "status": 429, "count": 7000}],
    "responses_made": [{"id": "resp_9f3c", "maker": "5c9f", "counted": False}],
    "responses_asked": ["resp_77aa"],
    "gauges": {"in_flight": 3, "queue_entries": 6, "queue_bytes": 120000, "queue_stalled_seconds": 0, "entries_left_out": 0, "quota_pending": 4,
               "quota_lost": 0},
    "queue": {"models": {"Qwen": {"in_flight": 8, "waiting": 10, "share": {"user": "bob", "places": 6}}}, "waiting": {"alice": 2}},
    "quota": {"version": "731:731:", "revision": "9f2c-1", "workers": ["4711-1-ab"]},
}
ANSWER = {
    "v": 1, "responses": [{"id": "resp_77aa", "maker": "", "counted": True}],
    "quota": {
        "version": "731:735:733", "revision": "9f2c-1", "full": True, "zone": "Europe/Berlin",
        "limits": [{"id": 7, "subject": "user", "name": "alice", "models": "Qwen%", "unit": "tokens", "currency": "", "per": "day",
                    "amount": 2000000, "mode": "hard"}],
        "windows": {"hour": [1795748400], "day": [1795734000], "week": [1795388400], "month": [1793487600]},
        "prices": [{"models": "Qwen%", "prompt": 0.6, "cached": 0.1, "completion": 2.4, "currency": "CNY"}],
        "used": [[7, "alice", 1795734000, 1234.5]], "counted": {"4711-1-ab": [[1, 180]]},
    },
}
NOTICE = {
    "v": 1, "type": "quota.threshold", "id": "7-1795734000-80-ml", "text": "team ml: 80 %", "threshold": 80,
    "limit": {"id": 7, "subject": "team", "name": "ml", "models": "%", "unit": "tokens", "currency": "", "per": "day",
              "amount": 2000000, "mode": "soft"},
    "used": 1640000, "left": 360000, "percent": 82.0, "starts_at": "2026-11-26T23:00:00Z", "resets_at": "2026-11-27T23:00:00Z",
    "resets": "2026-11-28 00:00 Europe/Berlin", "noted_at": "2026-11-27T14:03:21Z",
}
WHOLE = {"quota-notice.json": NOTICE, "log-entry.json": ENTRY, "sync-request.json": REQUEST, "sync-answer.json": ANSWER}

# Whose members may be anything, or are told by their neighbours' types.
OPEN = ["querystring", "usage", "route", "service", "tries"]


def faults(name, document):
    validator = Draft202012Validator(SCHEMAS[name], registry=REGISTRY)
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]


def places(document, path=()):
    """Every value in a document but the outermost, as a path to it."""
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield (*path, key)
        if key not in OPEN:
            yield from places(value, (*path, key))


def changed(document, path, value):
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


def of_another_type(value):
    # A header is a text or a list of them.
    return [7, None] if isinstance(value, (str, list)) else ["x", None]


def described(schema):
    """Names of the members that a schema describes, wherever they are."""
    if isinstance(schema, list):
        return set().union(*map(described, schema), set())
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})).union(*map(described, schema.values()), set())


class Schemas(unittest.TestCase):
    def test_they_are_schemas(self):
        self.assertEqual(sorted(SCHEMAS), sorted(WHOLE))
        for schema in SCHEMAS.values():
            Draft202012Validator.check_schema(schema)

    def test_whole_documents_are_valid_and_have_every_member(self):
        for name, document in WHOLE.items():
            self.assertEqual(faults(name, document), [])
            found = {path[-1] for path in places(document)}
            self.assertEqual(described(SCHEMAS[name]) - found, set(), name)
        self.assertEqual(faults("log-entry.json", [ENTRY, ENTRY]), [])
        empty_lists = changed(changed(ENTRY, ("tries",), {}), ("consumer", "tags"), {})
        self.assertEqual(faults("log-entry.json", empty_lists), [])

    def test_wrong_types_are_refused(self):
        for name, document in WHOLE.items():
            for path in places(document):
                value = document
                for key in path:
                    value = value[key]
                for wrong in of_another_type(value):
                    with self.subTest(schema=name, path=path, wrong=wrong):
                        self.assertNotEqual(faults(name, changed(document, path, wrong)), [])
            for wrong in ("x", 7, None):
                self.assertNotEqual(faults(name, wrong), [])

    def test_wrong_values_are_refused(self):
        for name, path, wrong in [
            ("log-entry.json", ("llm", "v"), 2), ("log-entry.json", ("llm", "seq"), 0), ("log-entry.json", ("llm", "seq"), 1.5),
            ("log-entry.json", ("llm", "ttft_ms"), -1), ("log-entry.json", ("tries",), {"a": 1}),
            ("log-entry.json", ("llm", "request_bytes"), True), ("log-entry.json", ("started_at",), "1795716662376"),
            ("sync-request.json", ("v",), 2), ("sync-request.json", ("node",), ""), ("sync-request.json", ("node",), "n" * 129),
            ("sync-request.json", ("workers",), {}), ("sync-request.json", ("workers", 0, "seq"), -1),
            ("sync-request.json", ("refused_calls", 0, "status"), 42), ("sync-request.json", ("refused_calls", 0, "count"), 0),
            ("sync-request.json", ("responses_asked",), ["x"] * 1001), ("sync-answer.json", ("v",), "1"),
            ("sync-answer.json", ("responses", 0, "id"), ""), ("sync-request.json", ("queue", "models", ""), {}),
            ("sync-request.json", ("queue", "models", "Qwen", "waiting"), -1), ("sync-request.json", ("queue", "waiting", "alice"), 1.5),
            ("quota-notice.json", ("threshold",), 90), ("quota-notice.json", ("noted_at",), "yesterday"),
        ]:
            with self.subTest(schema=name, path=path, wrong=wrong):
                self.assertNotEqual(faults(name, changed(WHOLE[name], path, wrong)), [])
        for name, missing in [("sync-request.json", {"v": 1}), ("sync-answer.json", {}), ("log-entry.json", {"request": {}}),
                              ("sync-request.json", {"node": "n", "workers": [{"worker": "w"}]})]:
            self.assertNotEqual(faults(name, missing), [])

    def test_unknown_members_are_allowed_everywhere(self):
        for name, document in WHOLE.items():
            self.assertEqual(faults(name, changed(document, ("later",), {"x": [1]})), [])
            for path in places(document):
                value = document
                for key in path:
                    value = value[key]
                if isinstance(value, dict) and path[-1] not in ("headers", "latencies", "counted") and path[-2:] != ("queue", "waiting"):
                    self.assertEqual(faults(name, changed(document, (*path, "later"), {"x": [1]})), [], path)


class Contract(unittest.TestCase):
    def test_it_has_the_same_members(self):
        rows = [line.split("|")[1] for line in CONTRACT.splitlines() if line.startswith("| `")]
        names = set(re.findall(r"`llm\.(\w+)`", " ".join(rows)))
        self.assertEqual(names, set(SCHEMAS["log-entry.json"]["$defs"]["llm"]["properties"]))
        for document in (path.name for path in (PROJECT / "docs/schema").glob("*.json")):
            self.assertIn(f"(schema/{document})", CONTRACT)

    def test_its_example_is_valid_and_has_every_member(self):
        example = json.loads(re.search(r"```json\n(.*?)```", CONTRACT, re.S).group(1))
        self.assertEqual(faults("sync-request.json", example), [])
        self.assertEqual(set(example), set(SCHEMAS["sync-request.json"]["properties"]))


    def test_the_notice_of_a_webhook_is_valid_and_has_every_member(self):
        quotas = (PROJECT / "docs/quotas.md").read_text()
        example = json.loads(re.search(r"```json\n(.*?)```", quotas, re.S).group(1))
        self.assertEqual(faults("quota-notice.json", example), [])
        self.assertEqual(set(example), set(SCHEMAS["quota-notice.json"]["properties"]))


class Recorded(unittest.TestCase):
    def test_what_kong_sent_is_valid(self):
        files = sorted((PROJECT / "tests/fixtures/kong").glob("*/*.json"))
        files = [file for file in files if file.parent.name != "expected"]
        self.assertGreater(len(files), 100)
        for file in files:
            with self.subTest(file=file.name):
                # A few hold bytes that are no UTF-8, as they came.
                document = json.loads(file.read_bytes().decode("utf-8", "surrogateescape"))
                self.assertEqual(faults("log-entry.json", document), [])


class Peer(BaseHTTPRequestHandler):
    """The model server and the collector in one."""

    protocol_version = "HTTP/1.1"
    told = {"/log": [], "/sync": []}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in self.told:
            self.told[self.path].append(json.loads(body))
            return self.answer({"v": 1})
        asked = json.loads(body)
        if self.path == "/v1/responses":
            return self.answer({"id": "resp_made", "object": "response", "status": "completed", "model": "m",
                                "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, "output": []})
        if not asked.get("stream"):
            return self.answer({"id": "c", "model": "m", "choices": [], "usage": asked.get("usage")})
        event = json.dumps({"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]})
        return self.answer(f"data: {event}\n\ndata: [DONE]\n\n", "text/event-stream")

    def do_GET(self):
        self.answer({"object": "list", "data": []})

    def answer(self, body, content_type="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def fetch(url, body=None, method=None, **headers):
    data = json.dumps(body).encode() if body is not None else None
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Sent(unittest.TestCase):
    """What the plugin sends, from the test host's nginx."""

    @classmethod
    def setUpClass(cls):
        cls.peer = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
        threading.Thread(target=cls.peer.serve_forever, daemon=True).start()
        cls.folder = tempfile.TemporaryDirectory(prefix="schema-")
        run = PROJECT / "tests/nginx-host/run.sh"
        cls.stop = [run, "stop", "--prefix", cls.folder.name]
        cls.addClassCleanup(cls.tear_down)
        started = subprocess.run(
            [run, "start", "--prefix", cls.folder.name, "--proxy", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--status", "127.0.0.1:0"],
            env=os.environ | {"NGINX_HOST_WATCH_PID": str(os.getpid())}, check=True, capture_output=True, text=True)
        urls = dict(line.split("=", 1) for line in started.stdout.splitlines())
        cls.proxy, admin = urls["PROXY_URL"], urls["ADMIN_URL"]
        port = cls.peer.server_port
        for method, path, body in [
            ("PUT", "services/vllm", {"host": "127.0.0.1", "port": port}),
            ("PUT", "services/vllm/routes/v1", {"paths": ["/v1"], "strip_path": False}),
            ("PUT", "consumers/alice", {"tags": ["team:ml"]}),
            ("POST", "consumers/alice/key-auth", {"key": "sk-alice"}),
            ("POST", "services/vllm/plugins", {"name": "key-auth", "config": {"key_names": ["X-API-Key"]}}),
            ("POST", "plugins", {"name": "http-log", "config": {
                "http_endpoint": f"http://127.0.0.1:{port}/log", "queue": {"max_batch_size": 20, "max_coalescing_delay": 0.1}}}),
            ("POST", "plugins", {"name": "llm-audit", "config": {}}),
        ]:
            status = fetch(f"{admin}/{path}", body, method)
            assert status in (200, 201), (path, status)

    @classmethod
    def tear_down(cls):
        subprocess.run(cls.stop, check=False, capture_output=True)
        cls.peer.shutdown()
        cls.peer.server_close()
        cls.folder.cleanup()

    def call(self, path, body=None, key="sk-alice"):
        return fetch(self.proxy + path, body, X_API_Key=key)

    def wait_for(self, what, found):
        limit = time.monotonic() + WAIT_SECONDS
        while not (value := found()):
            self.assertLess(time.monotonic(), limit, what)
            time.sleep(0.05)
        return value

    def test_all_of_it_is_valid(self):
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        calls = [("/v1/chat/completions", chat | {"usage": usage}), ("/v1/chat/completions", chat),
                 ("/v1/chat/completions", chat | {"stream": True}), ("/v1/responses", {"model": "m", "input": "x"})]
        for path, body in calls:
            self.assertEqual(self.call(path, body), 200)
        self.assertEqual(self.call("/v1/models"), 200)
        self.assertEqual(self.call("/v1/chat/completions", chat, key="wrong"), 401)
        self.assertEqual(self.call("/elsewhere", chat), 404)
        # Nobody knows it: the node asks for its maker.
        self.assertEqual(self.call("/v1/responses/resp_unknown"), 503)

        def entries():
            return [entry for batch in Peer.told["/log"] for entry in (batch if isinstance(batch, list) else [batch])]

        def told(member):
            return [items for report in Peer.told["/sync"] if (items := report.get(member))]

        self.wait_for("every call has its entry", lambda: len(entries()) >= len(calls) + 4)
        for member in ("workers", "responses_made", "responses_asked"):
            self.wait_for(member, lambda: told(member))
        self.wait_for("numbers were given", lambda: any(worker["seq"] > 0 for worker in told("workers")[-1]))

        for batch in Peer.told["/log"]:
            self.assertEqual(faults("log-entry.json", batch), [])
        for report in Peer.told["/sync"]:
            self.assertEqual(faults("sync-request.json", report), [])
        self.assertIn("resp_made", [made["id"] for items in told("responses_made") for made in items])
        self.assertIn(["resp_unknown"], told("responses_asked"))
        members = set().union(*(entry["llm"] for entry in entries()))
        self.assertLessEqual({"api", "model_asked", "estimated", "seq", "worker", "ttft_ms", "usage"}, members)


if __name__ == "__main__":
    unittest.main()
