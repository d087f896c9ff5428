"""The documentation: it builds without a warning, has a page for all there is, and fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from filelock import FileLock

from bench.plugins.registry import KINDS, names
from bench.tasks.tasks import task_names

pytest.importorskip("mkdocs", reason="the documentation is built with mkdocs-material")
ROOT = Path(__file__).resolve().parent.parent
FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_FETCHED = {"canonical", "prev", "next", "alternate", "author"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built pages."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    with FileLock(tmp_path_factory.getbasetemp().parent / "docs.lock"):  # all write docs/reference
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return folder


class _Fetched(HTMLParser):
    """Collects the addresses that a browser fetches when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(FETCHING.get(tag, ""))
        if address and not set((given.get("rel") or "").split()) & NOT_FETCHED:
            self.addresses.append(address)


def fetched(page: str) -> list[str]:
    parser = _Fetched()
    parser.feed(page)
    return parser.addresses


def outside(addresses: list[str]) -> list[str]:
    return [a for a in addresses if re.match(r"(\w+:)?//", a) and not a.startswith("data:")]


def test_the_scan_finds_what_a_page_would_fetch() -> None:
    page = (
        '<link rel="stylesheet" href="https://fonts.example/css"><script src="//cdn.example/a.js">'
        '</script><a href="https://arxiv.org"></a><img src="a.png"><link rel="canonical" href="https://x">'
    )
    assert outside(fetched(page)) == ["https://fonts.example/css", "//cdn.example/a.js"]


@pytest.mark.slow
def test_nothing_is_fetched_from_outside(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert outside(fetched(page.read_text(encoding="utf-8"))) == [], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text("utf-8")
        ), sheet


@pytest.mark.slow
def test_everything_has_a_page(site: Path) -> None:
    for kind in KINDS:
        index = (site / "reference" / kind / "index.html").read_text(encoding="utf-8")
        for name in names(kind):
            text = (site / "reference" / kind / f"{name}.html").read_text(encoding="utf-8")
            assert f">{name}" in text
            assert f'href="{name}.html"' in index
    for name in task_names("emoji"):
        assert (site / "reference" / "tasks" / f"emoji-{name}.html").is_file()
    page = (site / "reference" / "methods" / "esd.html").read_text(encoding="utf-8")
    assert "arxiv.org/abs/2303.07345" in page
    assert "number &gt; 0" in page
    assert "object: 0.0001 (emoji world)" in page
    assert "1e-05 (paper)" in page


@pytest.mark.slow
def test_every_command_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in ("bench run", "bench plan", "bench speed attack", "bench report"):
        assert f'id="{command.replace(" ", "-")}"' in text
