"""A model server of fixed capacity, simulated: continuous batching as vLLM does it, so that who waits for whom can be measured.

A step takes the same time however many calls run, up to PLACES of them; each running call gets one token a step. A call that gets a
place has its prompt read within the next step, which is as much longer for everybody. Who waits is served in the order of
`X-Vllm-Priority` (less is sooner, none is 0), then of arrival; a running call is never taken out again. That is what vLLM does with
`--scheduling-policy priority`, and first come, first served for calls without the header. A client that hangs up is gone at the
next step. Words are tokens.

Prints its port. `GET /idle` answers 200 when nothing runs or waits, else 503.
"""
import asyncio
import heapq
import itertools
import json
import re

# Chosen after vLLM on a CPU: a call of 128 tokens takes 0.9 s, whether four or eight run.
PLACES = 8
STEP_SECONDS = 0.007
PROMPT_TOKENS_A_SECOND = 10_000

HEAD = re.compile(rb"^(\w+) (\S+)")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
PRIORITY = re.compile(rb"\r\nx-vllm-priority: *(-?\d+)", re.IGNORECASE)
MOST_TOKENS = 10_000


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN = chunk(b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n')
USAGE = 'data: {"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n'
END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Call:
    def __init__(self, reader, writer, prompt, tokens):
        self.reader, self.writer = reader, writer
        self.prompt, self.left = prompt, tokens
        self.end = chunk((USAGE % (prompt, tokens, prompt + tokens)).encode()) + END
        self.done = asyncio.Event()

    def is_gone(self):
        return self.reader.at_eof() or self.writer.transport.is_closing()


class Engine:
    def __init__(self):
        self.waiting, self.running = [], []
        self.arrival = itertools.count()
        self.wake = asyncio.Event()

    def add(self, call, priority):
        heapq.heappush(self.waiting, (priority, next(self.arrival), call))
        self.wake.set()

    def is_idle(self):
        return not self.waiting and not self.running

    def admit(self):
        """Gives free places away; returns how many tokens of prompts are to be read."""
        prompts = 0
        while self.waiting and len(self.running) < PLACES:
            call = heapq.heappop(self.waiting)[2]
            if call.is_gone():
                call.done.set()
                continue
            self.running.append(call)
            prompts += call.prompt
        return prompts

    def write_tokens(self):
        for call in self.running:
            call.left -= 1
            if not call.is_gone():
                call.writer.write(TOKEN if call.left > 0 else TOKEN + call.end)
            if call.left <= 0 or call.is_gone():
                call.done.set()
        self.running = [call for call in self.running if not call.done.is_set()]

    async def run(self):
        loop = asyncio.get_running_loop()
        until = loop.time()
        while True:
            if self.is_idle():
                self.wake.clear()
                await self.wake.wait()
                until = loop.time()
            prompts = self.admit()
            # Steps follow each other by the clock: a late one does not lower the rate.
            until = max(until, loop.time() - STEP_SECONDS) + STEP_SECONDS + prompts / PROMPT_TOKENS_A_SECOND
            await asyncio.sleep(max(until - loop.time(), 0))
            self.write_tokens()


async def read_call(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return head, body


async def serve_one(engine, reader, writer):
    head, body = await read_call(reader)
    if HEAD.match(head)[2] == b"/idle":
        status = b"200 OK" if engine.is_idle() else b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)
        return
    asked = json.loads(body)
    prompt = sum(len(message["content"].split()) for message in asked["messages"])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    call = Call(reader, writer, prompt, min(max(int(asked.get("max_tokens", 1)), 1), MOST_TOKENS))
    priority = PRIORITY.search(head)
    engine.add(call, int(priority[1]) if priority else 0)
    # The next call of this connection, or its end, which closes the transport.
    await call.done.wait()


async def main():
    engine = Engine()

    async def serve(reader, writer):
        try:
            while not writer.transport.is_closing():
                await serve_one(engine, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.gather(server.serve_forever(), engine.run())


if __name__ == "__main__":
    asyncio.run(main())
