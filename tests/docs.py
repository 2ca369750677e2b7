#!/usr/bin/env python3
"""Looks for what the documents promise and the project does not have. Standard library only.

    tests/docs.py CHECK [ROOT]

CHECK is one of:
  links     every relative link and anchor of a Markdown file leads somewhere, and every page under docs/ is linked
  proofs    a link whose text is the name of a test leads to a file that has this test
  make      every `make TARGET` is a target of the Makefile
  commands  every `llm-collector …` and `gateway …` is known to --help, with its sub-commands and options
  settings  every setting of deploy/gateway.env is described, and every setting that a document names is read somewhere
  readme    README.md has at most 120 lines, and README.zh-CN.md leads wherever it leads

ROOT is the repository by default. Prints one line for each fault and ends with status 1 if there is any. LLM_COLLECTOR names the
binary; without it, the debug build.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

README_LINES = 120
# Settings of other programs, which the documents name: those of SDKs, Open WebUI and pip, and those that Kong
# hands on to nginx or that Grafana reads.
FOREIGN = {"NODE_EXTRA_CA_CERTS", "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_API_BASE_URL", "PIP_INDEX_URL"}
FOREIGN_PREFIXES = ("KONG_NGINX_", "KONG_SSL_", "GF_")
SKIPPED = {".git", ".test", ".demo", "target", "dist"}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")


class Documents:
    """The Markdown files below a folder, as lines of text and pieces of code."""

    def __init__(self, root):
        self.root = root
        self.faults = []
        self.pages = sorted(self.files(".md"))

    def files(self, *endings):
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in SKIPPED]
            for name in names:
                if not endings or name.endswith(endings):
                    yield Path(folder) / name

    def fault(self, page, line, what):
        self.faults.append(f"{page.relative_to(self.root)}:{line}: {what}")

    def lines(self, page, fences=False):
        """(number, text, whether it is in a block of code), with or without the lines that begin and end a block"""
        fenced = False
        before_is_blank = True
        indented = False
        for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if text.lstrip().startswith("```"):
                fenced = not fenced
                if fences:
                    yield number, "", True
                continue
            # Markdown takes four blanks for code behind a blank line, not in the middle of a paragraph.
            indented = text.startswith("    ") and (indented or before_is_blank)
            before_is_blank = not text.strip()
            yield number, text, fenced or indented

    def code(self, page):
        """(number, code): lines of blocks, continued ones as one, and spans in the text."""
        continued = ""
        for number, text, is_block in self.lines(page):
            if not is_block:
                for span in re.findall(r"`([^`]+)`", text):
                    yield number, span.strip()
            elif text.endswith("\\"):
                continued += text[:-1] + " "
            else:
                yield number, (continued + text).strip()
                continued = ""

    def links(self, page):
        # As one text, because a line may end within a link.
        text = "\n".join("" if is_block else text for _, text, is_block in self.lines(page, fences=True))
        for link in LINK.finditer(text):
            label, target, attribute = link.groups()
            yield text.count("\n", 0, link.start()) + 1, (label or "").replace("\n", " "), target or attribute


def anchor_of(heading):
    """As GitHub makes it: letters, digits, hyphens and underscores of all scripts."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def anchors(documents, page):
    found = set()
    for _, text, is_block in documents.lines(page):
        if not is_block and (heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", text)):
            name = anchor_of(heading.group(1))
            again = 1
            while name in found:
                name = f"{anchor_of(heading.group(1))}-{again}"
                again += 1
            found.add(name)
    return found


def check_links(documents):
    linked = set()
    for page in documents.pages:
        for number, _, target in documents.links(page):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            path, _, anchor = target.partition("#")
            destination = (page.parent / path).resolve() if path else page
            if not destination.exists():
                documents.fault(page, number, f"the link leads nowhere: {target}")
                continue
            if destination != page:
                linked.add(destination)
            if anchor and destination.suffix == ".md" and anchor not in anchors(documents, destination):
                documents.fault(page, number, f"there is no such heading: {target}")
    for page in documents.pages:
        if page.parent == documents.root / "docs" and page not in linked:
            documents.fault(page, 1, "no other page links to this one")


def check_proofs(documents):
    for page in documents.pages:
        for number, label, target in documents.links(page):
            name = re.fullmatch(r"`(.+)`", label)
            file = page.parent / target
            if not name or not file.is_file():
                continue
            text = file.read_text(encoding="utf-8")
            wanted = {".rs": rf"\bfn {re.escape(name.group(1))}\(", ".bats": rf'^@test "{re.escape(name.group(1))}"'}.get(file.suffix)
            # A link to a file may as well be named like the file.
            if wanted and not label.strip("`").endswith(file.suffix) and not re.search(wanted, text, re.MULTILINE):
                documents.fault(page, number, f"{target} has no test {name.group(1)}")


def check_make(documents):
    makefile = (documents.root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    for page in documents.pages:
        for number, code in documents.code(page):
            for target in re.findall(r"(?:^|[;&|] *|sudo )(?:[A-Z_]+=\S* +)*make +([a-z][a-z0-9-]*)", code):
                if target not in targets:
                    documents.fault(page, number, f"the Makefile has no target {target}")


@functools.cache
def help_of(*words):
    """What --help says of a command of the binary, and the names of its sub-commands."""
    binary = os.environ.get("LLM_COLLECTOR") or Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug/llm-collector"
    text = subprocess.run([binary, *words, "--help"], capture_output=True, text=True, check=True).stdout
    commands = re.search(r"^Commands:\n((?: .*\n|\n(?= ))*)", text, re.MULTILINE)
    return text, set(re.findall(r"^  ([a-z][a-z-]*)", commands.group(1), re.MULTILINE)) if commands else set()


@functools.cache
def help_of_gateway(root):
    text = subprocess.run([root / "deploy/gateway", "help"], capture_output=True, text=True, check=True).stdout
    usage = text.partition("Usage:")[2].partition("Environment:")[0]
    commands = set()
    for line in re.findall(r"^  ([a-z].*)", usage, re.MULTILINE):
        # Alternatives of the first word have no other word before them: "up | down", "report|prices"; not "users add|list".
        first = re.match(r"[a-z]+(?: *\| *[a-z]+)*", line).group(0)
        commands.update(word.strip() for word in first.split("|"))
    return text, commands


def words_of(rest):
    """The words of a command, without what is behind it: pipes, redirections, comments, alternatives."""
    return re.split(r"[|;<>#&)(…]", rest)[0].split()


def check_words(documents, page, number, words, name):
    """Follows the words of an llm-collector command into the help, and looks for its options there."""
    path = []
    while words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        commands = help_of(*path)[1]
        if not commands:
            break
        if words[0] not in commands:
            documents.fault(page, number, f"{name} {' '.join(path)}: no command {words[0]}".replace(" :", ":"))
            return
        path.append(words.pop(0))
    for word in words:
        option = re.match(r"--[a-z][a-z-]*", word)
        if option and not re.search(rf"{option.group(0)}\b(?!-)", help_of(*path)[0]):
            documents.fault(page, number, f"{name} {' '.join(path)}: no option {option.group(0)}")


def check_commands(documents):
    for page in documents.pages:
        for number, code in documents.code(page):
            for rest in re.findall(r"(?:^|[\s/\"])llm-collector +([a-z-].*)", code):
                check_words(documents, page, number, words_of(rest), "llm-collector")
            for rest in re.findall(r"(?:^|[\s/])gateway +([a-z-].*)", code.split("#")[0]):
                check_gateway(documents, page, number, words_of(rest))


def check_gateway(documents, page, number, words):
    text, commands = help_of_gateway(documents.root)
    if not words or words[0].startswith("-"):
        return
    if words[0] not in commands:
        documents.fault(page, number, f"gateway: no command {words[0]}")
    elif words[0] in help_of()[1] - {"help"}:
        check_words(documents, page, number, words, "gateway")
    elif words[0] != "compose":
        for option in re.findall(r"--[a-z][a-z-]*", " ".join(words)):
            if not re.search(rf"{option}\b(?!-)", text):
                documents.fault(page, number, f"gateway {words[0]}: no option {option}")


def check_settings(documents):
    file = documents.root / "deploy/gateway.env"
    described = False
    documented = " ".join(page.read_text(encoding="utf-8") for page in documents.pages)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            described = True
        elif setting := re.match(r"([A-Z_]+)=", line):
            if not described and not re.search(rf"\b{setting.group(1)}\b", documented):
                documents.fault(file, number, f"nothing describes {setting.group(1)}")
        else:
            described = False
    source = {"": FOREIGN}
    for path in documents.files():
        if path.suffix != ".md" and "fixtures" not in path.parts:
            source[path] = set(re.findall(r"[A-Z][A-Z0-9_]*_[A-Z0-9_]*[A-Z0-9]", path.read_text(encoding="utf-8", errors="ignore")))
    known = set().union(*source.values())
    for page in documents.pages:
        for number, code in documents.code(page):
            # Names with two parts or more, whole: not the beginning of one (KEEP_*_DAYS), not a part of something (REQUEST_ID/llm_logs/ID).
            for name in re.findall(r"(?<![\w…*{/-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w*…/-])", code):
                if name not in known and not name.startswith(FOREIGN_PREFIXES):
                    documents.fault(page, number, f"nothing reads {name}")


def check_readme(documents):
    page = documents.root / "README.md"
    lines = len(page.read_text(encoding="utf-8").splitlines())
    if lines > README_LINES:
        documents.fault(page, lines, f"{lines} lines, where {README_LINES} are the most: move something to docs/")
    translation = documents.root / "README.zh-CN.md"
    led_to = {target for _, _, target in documents.links(translation)}
    for number, _, target in documents.links(page):
        if target not in led_to and target != translation.name:
            documents.fault(page, number, f"{translation.name} has no link to {target}")


CHECKS = {
    "links": check_links,
    "proofs": check_proofs,
    "make": check_make,
    "commands": check_commands,
    "settings": check_settings,
    "readme": check_readme,
}


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in CHECKS:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    root = Path(sys.argv[2] if len(sys.argv) == 3 else Path(__file__).parent.parent).resolve()
    documents = Documents(root)
    CHECKS[sys.argv[1]](documents)
    for fault in documents.faults:
        print(fault)
    sys.exit(1 if documents.faults else 0)


if __name__ == "__main__":
    main()
