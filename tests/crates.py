#!/usr/bin/env python3
"""Finds crates that a Cargo.toml of the workspace names and that no source of its package uses, as cargo-machete does: each makes every
build slower. Prints one line for each and ends with status 1 if there is any.

    tests/crates.py [FOLDER]      the folder of a workspace; by default the project's
"""

import re
import sys
import tomllib
from pathlib import Path

TABLES = ("dependencies", "dev-dependencies", "build-dependencies")
SOURCES = ("src", "tests", "benches", "examples")


def sources(package):
    files = [package / "build.rs"] + [file for folder in SOURCES for file in (package / folder).rglob("*.rs")]
    return "\n".join(file.read_text() for file in files if file.exists())


def is_used(name, text):
    # As a path (`name::`), or by itself (`use name;`, `use name as other;`, `extern crate name`).
    name = name.replace("-", "_")
    return re.search(rf"\b{name}\s*::|\b(?:use|crate)\s+(?:::)?{name}\b", text) is not None


def faults(root):
    workspace = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]
    named = set()
    for member in workspace["members"]:
        package = root / member
        text = sources(package)
        manifest = tomllib.loads((package / "Cargo.toml").read_text())
        for table in TABLES:
            for name in manifest.get(table, {}):
                named.add(name)
                if not is_used(name, text):
                    yield f"{member}/Cargo.toml: nothing uses {name} ({table})"
    for name in workspace.get("dependencies", {}):
        if name not in named:
            yield f"Cargo.toml: no package of the workspace has {name}"


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    found = list(faults(root))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)


main()
