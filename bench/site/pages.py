"""Writes the leaderboard: one page that holds everything, and a page for each cell."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.core.errors import SpecError, StoreError
from bench.report.corrected import AS_SEEN, Judges
from bench.report.figures.catalog import ALONE, from_records
from bench.report.figures.select import EVERYTHING
from bench.report.statistics import BEST_KNOWN, BEST_KNOWN_IS
from bench.report.text import plain
from bench.site.cells import page_of
from bench.site.lines import Tab, as_json, tabs
from bench.store.files import write
from bench.store.record import Record
from bench.store.store import Store

_DRAWN = 24  # lines
_EXPORT = re.compile(r"export\s*\{([^{}]*)\}\s*;?")


def write_pages(
    records: Sequence[Record], store: Store, out: Path, title: str, judges: Judges = AS_SEEN
) -> Path:
    """Write ``index.html`` and ``cells/<id>.html``; return the first.

    Args:
        records: What is shown.
        store: Where they lie: pictures are looked for beside them.
        out: A folder, made if it is not there.
        title: Of the first page.
        judges: What the rates of the first page are corrected for.

    Raises:
        StoreError: The folder cannot be written.
    """
    shown = tabs(records, judges)
    index = out / "index.html"
    models = sorted({r.cell.model for r in records})
    write(
        index,
        _page(
            "index.html",
            script=_tables_script() + _own("index.js"),
            style=_package("dt_bundle.css") + _own("style.css"),
            title=title,
            tabs=shown,
            data=_visible({"tabs": [as_json(t) | {"figures": _figures(t)} for t in shown]}),
            records=len(records),
            best_known=BEST_KNOWN,
            best_known_is=BEST_KNOWN_IS,
            models=models,
            version=version("erasure-bench"),
        ),
    )
    style, script = _own("style.css"), _own("cell.js")
    for r in records:
        page = page_of(r, store.path(r.cell).with_suffix(".png"))
        html = _page("cell.html", script=script, style=style, title=title, page=page)
        write(out / "cells" / f"{page.id}.html", html)
    return index


def _figures(tab: Tab) -> list[dict[str, str]]:
    """Return what can be drawn of a tab, as data URLs; of many lines nobody could read it."""
    made = []
    for name in ALONE if len(tab.lines) <= _DRAWN else ():
        with contextlib.suppress(SpecError):  # no records for this figure
            drawing, _ = from_records(name, tab.records, EVERYTHING)
            svg = base64.b64encode(drawing.bytes("svg")).decode()
            made.append({"title": drawing.title, "url": f"data:image/svg+xml;base64,{svg}"})
    return made


def _page(name: str, *, script: str, style: str, **values: Any) -> bytes:
    """Return a page that runs this script and this style, and nothing else."""
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    from markupsafe import Markup

    own = {"policy": policy, "script": Markup(script), "style": Markup(style)}
    return str(_templates().get_template(name).render(own, **values)).encode()


def _visible(value: Any) -> Any:
    """Return a value in which no text holds a character that cannot be seen, or turns the line around."""
    if isinstance(value, dict):
        return {plain(key): _visible(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(each) for each in value]
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import escape

    environment = Environment(
        loader=PackageLoader("bench.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["lines"] = escape  # keeps the breaks between lines
    return environment


@cache
def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _own(name: str) -> str:
    return files("bench.site").joinpath("templates", name).read_text("utf-8")


@cache
def _package(name: str) -> str:
    """Return a file of the installed package itables, which brings DataTables in one script."""
    try:
        return files("itables").joinpath("html", name).read_text("utf-8")
    except OSError as exc:
        raise StoreError(
            f"itables {version('itables')} has no file html/{name}; install itables 2.9 or newer"
        ) from exc


@cache
def _tables_script() -> str:
    """Return DataTables so that a script in the same module can use it, as ``tables.default``.

    What the bundle exports is put into an object: a module in a page cannot be imported by another under a
    policy that allows scripts by their hash alone.
    """
    bundle = _package("dt_bundle.js")
    found = list(_EXPORT.finditer(bundle))
    if len(found) != 1:
        raise StoreError(
            f"itables {version('itables')}: expected one export in html/dt_bundle.js, got {len(found)}"
        )
    pairs = (item.split(" as ") for item in found[0][1].split(","))
    exported = ", ".join(f'"{pair[-1].strip()}": {pair[0].strip()}' for pair in pairs)
    before, after = bundle[: found[0].start()], bundle[found[0].end() :]
    return f"{before};const tables = {{{exported}}};{after}\n"
