"""README and docs: what they say that a command prints, their links, and the commands that they show."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from bench.cli import app

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs" / "generated.py"))
filled, folded = SCRIPT["filled"], SCRIPT["_folded"]
PAGES = SCRIPT["pages"]()
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_holds_what_its_commands_print(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, models=False) == text, "run `make generated`"


@pytest.mark.slow
def test_the_page_on_python_says_what_its_example_prints() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert "<!-- generated: python -->" in text
    assert filled(text) == text, "run `make generated`"


def test_blocks_are_written_anew() -> None:
    page = "a\n\n<!-- generated: bench list figures -->\nstale\n<!-- end -->\n\nb `<!-- generated: c -->`\n"
    new = filled(page)
    assert "stale" not in new and "$ bench list figures\npareto" in new
    assert new.startswith("a\n") and new.endswith("<!-- end -->\n\nb `<!-- generated: c -->`\n")
    assert max(map(len, new.splitlines())) <= 80
    assert filled(new) == new
    example = '```python\nprint("x" * 3)\n```\n\n<!-- generated: python -->\n<!-- end -->\n'
    assert filled(example, models=False) == example
    assert "\n```text\nxxx\n```\n" in filled(example)
    with pytest.raises(RuntimeError, match="(?s)bench list figurs: .*is not one of"):
        filled("<!-- generated: bench list figurs -->\n<!-- end -->\n")


def test_a_command_in_lines_is_the_same_command() -> None:
    command = "bench report " + " ".join(f"--task name-{i}" for i in range(30))
    lines = folded(command).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) < 100
    said = subprocess.run(
        ["sh", "-c", folded(command).replace("bench", "echo", 1)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.split() == command.split()[1:]


def test_links_lead_to_files_that_are_here() -> None:
    """Also on a code host, where nothing is built: README and its like link to committed files only."""
    kept = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split("\0")  # fmt: skip
    if not kept[0]:
        pytest.skip("not a checkout")
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        links = {link for link in LINK.findall((ROOT / name).read_text("utf-8")) if ":" not in link}
        assert links
        assert links <= set(kept) | {"docs/examples.png"}, (
            name
        )  # the picture is in a comment at first


def commands() -> list[tuple[str, str]]:
    """Return the lines of code in pages that begin with ``bench``, and their page."""
    found = []
    for page in PAGES:
        if page.name == "tutorial.md":  # its commands are run
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"(?ms)^```(\w*)[^\n]*\n(.*?)^```$", text)
        lines = [
            line for kind, block in blocks if kind in {"", "sh"} for line in block.splitlines()
        ]
        lines += [line for line in text.splitlines() if line.startswith("    bench ")]
        found += [(page.name, line.strip()) for line in lines if line.strip().startswith("bench ")]
    return found


def test_commands_in_pages_have_the_options_that_they_show() -> None:
    shown = commands()
    assert len(shown) > 30
    for page, line in shown:
        _, *words = shlex.split(line, comments=True)
        command = get_command(app)
        while getattr(command, "commands", None) and words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        assert not getattr(command, "commands", None), (page, line)
        context = command.context_class(command)
        command.make_parser(context).parse_args(args=words)  # raises at an unknown option
