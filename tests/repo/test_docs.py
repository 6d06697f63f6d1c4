"""The documentation says what is there: links lead somewhere, commands exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from graphopt.cli.main import app

ROOT = Path(__file__).parents[2]


def pages() -> list[Path]:
    """The pages of the checkout, not of what tools and builds leave in it."""
    ours = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # not a git checkout, so nothing was built in it yet
        return sorted(ROOT.rglob("*.md"))
    return sorted(ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


PAGES = pages()
MAKE_TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(text: str) -> list[str]:
    """Shell lines of indented or fenced blocks, and inline code, that start with graphopt or make."""
    blocks = re.findall(r"^(?: {4}|\t)(.+)$", text, re.MULTILINE) + re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    parts = [part.strip().removeprefix("$ ") for line in lines for part in line.split("&&")]
    return [p for p in parts if re.match(r"(graphopt|make) [\w-]", p)]


def test_there_are_pages() -> None:
    assert {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {p.name for p in PAGES}


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@by_page
def test_commands_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for command in commands(page.read_text()):
        program, *words = command.split()
        if program == "make":
            assert words[0] in MAKE_TARGETS, command
        else:
            check_verb(root, words, command)


def check_verb(group: Any, words: list[str], command: str) -> None:
    """Follow the verbs of ``command`` and compare its options with those that the last one declares."""
    verb = group
    while hasattr(verb, "commands") and words and not words[0].startswith("-"):
        assert words[0] in verb.commands, f"{command}: no verb '{words[0]}'"
        verb = verb.commands[words.pop(0)]
    known = {o for p in verb.params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
    for word in words:
        option = word.partition("=")[0].strip("[]")
        if re.match(r"--?[a-zA-Z]", option):
            assert option in known, f"{command}: no option {option}"


def test_every_verb_teaches() -> None:
    """Each verb's help has an example that starts with the verb."""

    def verbs(group: Any, path: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                verbs(command, f"{path} {name}")
            else:
                assert f"{path} {name}" in (command.help or ""), f"the help of '{path} {name}' has no example"

    verbs(typer.main.get_command(app), "graphopt")


def test_nothing_names_this_or_that_machine() -> None:
    """Committed text holds no path of a home folder or a working folder of somebody."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    kinds = {".md", ".py", ".toml", ".yaml", ".yml", ".sh", ".txt", ".cmake", ".json", ".cpp", ".h", ".cu", ".cuh"}
    pattern = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w+")
    found = [
        f"{name}: {match}"
        for name in listed.stdout.splitlines()
        if Path(name).suffix in kinds and (ROOT / name).is_file()
        for match in pattern.findall((ROOT / name).read_text(errors="replace"))
    ]
    assert not found
