"""A collector in the style that people write first, to compare with.

Flask, psycopg2, one INSERT for each entry, one commit for each INSERT; one
connection for all of them, or, as still simpler ones do, a connection for each.
It does less than llm-collector: no duplicates, no rejected entries, no other
APIs, no removal of keys, ten columns instead of twenty-seven.
"""
import argparse
import base64
import json
from datetime import datetime, timezone

import psycopg2
from flask import Flask, request

app = Flask(__name__)
database_url = None
kept_connection = None


def body_of(part):
    text = part.get("body")
    return base64.b64decode(text).decode("utf-8", "replace") if text else ""


def prompt_of(body):
    messages = body.get("messages") or []
    asked = [m["content"] for m in messages if m.get("role") == "user"]
    return asked[-1] if asked else body.get("prompt")


def answer_of(text):
    if not text.startswith("data:"):
        choices = json.loads(text).get("choices") or [{}]
        return choices[0].get("message", choices[0]).get("content")
    parts = []
    for line in text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                parts.append(choice.get("delta", {}).get("content") or "")
    return "".join(parts)


def store(entry):
    request_text = body_of(entry["request"])
    response_text = body_of(entry["response"])
    try:
        prompt = prompt_of(json.loads(request_text))
    except (ValueError, AttributeError):
        prompt = request_text
    try:
        answer = answer_of(response_text)
    except (ValueError, AttributeError):
        answer = response_text
    entry["request"]["body"] = request_text
    entry["response"]["body"] = response_text
    connection = kept_connection or psycopg2.connect(database_url)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO llm_logs (request_id, consumer_username, started_at, latency_ms, status, prompt, response, raw_log)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                entry["request"]["id"],
                entry.get("consumer", {}).get("username", "anonymous"),
                datetime.fromtimestamp(entry["started_at"] / 1000, timezone.utc),
                entry["latencies"]["request"],
                entry["response"]["status"],
                prompt,
                answer,
                json.dumps(entry),
            ),
        )
    connection.commit()
    if connection is not kept_connection:
        connection.close()


@app.post("/log")
def log():
    entries = request.get_json()
    if isinstance(entries, dict):
        entries = [entries]
    for entry in entries:
        store(entry)
    return {"stored": len(entries)}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--database-url", required=True)
    arguments.add_argument("--connect-for-each-entry", action="store_true")
    arguments = arguments.parse_args()
    database_url = arguments.database_url
    if not arguments.connect_for_each_entry:
        kept_connection = psycopg2.connect(database_url)
    app.run(port=arguments.port)
