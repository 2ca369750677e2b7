"""Compares a declarative file with what the Admin API listed: exported.py FOLDER, for models.bats."""

import json
import sys
import time
from pathlib import Path

import yaml

folder = Path(sys.argv[1])
exported = yaml.safe_load((folder / "kong.yaml").read_text())


def listed(name):
    decoder, text, entities = json.JSONDecoder(), (folder / f"of-{name}").read_text().strip(), []
    while text:
        page, end = decoder.raw_decode(text)
        entities += page["data"]
        text = text[end:].strip()
    return entities


def plain(value):
    """Without what is not set, what Kong adds, and whether an empty list is written as an object."""
    if isinstance(value, dict):
        kept = {name: plain(inner) for name, inner in value.items() if name not in ("created_at", "updated_at", "ws_id")}
        return {name: inner for name, inner in kept.items() if inner is not None} or []
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def entity(found):
    for owner in ("service", "consumer", "upstream"):
        if isinstance(found.get(owner), dict):
            found[owner] = found[owner]["id"]
    return plain(found)


def by_id(entities):
    return {found["id"]: entity(found) for found in entities}


def same(name, of_file, of_kong):
    assert of_file and of_file == of_kong, f"{name}: {of_file} is not {of_kong}"


for file_name, api_name in (("upstreams", "upstreams"), ("targets", "targets"), ("consumers", "consumers")):
    same(file_name, by_id(exported[file_name]), by_id(listed(api_name)))

keys, in_kong = by_id(exported["keyauth_credentials"]), by_id(listed("key-auths"))
ends = {key: entry.pop("ttl") for key, entry in keys.items() if "ttl" in entry}
left = {key: entry.pop("ttl") for key, entry in in_kong.items() if "ttl" in entry}
same("keys", keys, in_kong)
# A file says when a key ends, the Admin API how many seconds are left. Minutes are for a slow machine.
assert ends.keys() == left.keys() and len(ends) == 1
assert all(abs(ends[key] - time.time() - left[key]) < 300 for key in ends), f"{ends} {left}"

router = [plugin for plugin in exported["plugins"] if plugin["name"] == "llm-router"]
same("router", by_id(router), by_id(found for found in listed("plugins") if found["name"] == "llm-router"))
assert {model["name"] for model in router[0]["config"]["models"]} >= {"Org/Export"}
limits = [plugin for plugin in exported["plugins"] if "consumer" in plugin]
same("limits", by_id(limits), by_id(found for found in listed("plugins") if found.get("consumer")))
route = next(route for route in exported["routes"] if route["name"] == "vllm-models")
assert len(route["paths"]) == 2, "the path of single models is open"
assert len({plugin["id"] for plugin in exported["plugins"]}) == len(exported["plugins"])
