#!/usr/bin/env python3
"""A model server for the tests of the installation: just enough of vLLM's API for the call that proves the path.

    vllm_stub.py PORT    on the loopback address
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}

# As vLLM shows it, with an id inside that is none of a model.
MODEL = {"id": "stub", "object": "model", "owned_by": "tests", "permission": [{"id": "modelperm-1", "object": "model_permission"}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path in ("/health", "/metrics"):
            body = b"" if self.path == "/health" else b"vllm:num_requests_running 0\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [MODEL]})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        asked = request.get("messages", [{}])[-1].get("content", "")
        message = {"role": "assistant", "content": f"You said: {asked}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer(200, {"id": "chatcmpl-1", "object": "chat.completion", "model": request.get("model"), "choices": [choice], "usage": USAGE})


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
