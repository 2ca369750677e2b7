#!/usr/bin/env python3
"""Both ends for the host's self-test: an upstream and a collector of log batches.

    selftest_server.py FOLDER    prints the port it listens on (loopback)

Upstream, by path: /echo answers with what arrived as JSON; /sse?n=3&ms=50 streams
events; /size?bytes=N; /slow?ms=N; /cut sends half a body and drops the connection;
/status?code=N; /die as /echo, or nothing at all while there is a file FOLDER/dies. Prefixes in front of these are ignored, so routes may point anywhere.

Collector: POST /log appends the body as one line to FOLDER/batches and its headers
to FOLDER/batch-headers; it answers with the status in FOLDER/log-status when that
file exists, else 200.
"""

import json
import os
import sys
import time
from urllib.parse import parse_qs, urlsplit

from stub import Stub, serve

FOLDER = sys.argv[1]


class Handler(Stub):

    def serve(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = url.path.rsplit("/", 1)[-1]
        method = getattr(self, "serve_" + name, self.serve_echo)
        method(query, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = serve

    def serve_echo(self, query, body):
        headers = {}
        for header, value in self.headers.items():
            headers.setdefault(header.lower(), []).append(value)
        self.answer(200, json.dumps({
            "method": self.command, "path": self.path, "headers": headers,
            "bytes": len(body), "body": body[:200].decode("latin-1"),
        }).encode())

    def serve_die(self, query, body):
        if os.path.exists(os.path.join(FOLDER, "dies")):
            self.close_connection = True
        else:
            self.serve_echo(query, body)

    def serve_sse(self, query, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(int(query.get("n", 3))):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(int(query.get("ms", 50)) / 1000)
        self.wfile.write(b"0\r\n\r\n")

    def serve_size(self, query, body):
        self.answer(200, b"x" * int(query["bytes"]), "application/octet-stream")

    def serve_slow(self, query, body):
        time.sleep(int(query["ms"]) / 1000)
        self.answer(200, b"{}")

    def serve_cut(self, query, body):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(1)

    def serve_status(self, query, body):
        self.answer(int(query["code"]), b'{"detail":"from upstream"}',
                    more=[("Server", "uvicorn")])

    def serve_log(self, query, body):
        with open(os.path.join(FOLDER, "batches"), "ab") as file:
            file.write(body + b"\n")
        with open(os.path.join(FOLDER, "batch-headers"), "a") as file:
            file.write(json.dumps(dict(self.headers)) + "\n")
        try:
            with open(os.path.join(FOLDER, "log-status")) as file:
                status = int(file.read())
        except FileNotFoundError:
            status = 200
        self.answer(status, b'{"stored":1}')


if __name__ == "__main__":
    serve(Handler)
