"""The leaderboard: what its pages show, in a real browser, and that nothing in a record can act there."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy.stats import binomtest
from test_report import result

from bench import Concept
from bench.plugins.registry import Ref
from bench.report.command import command, remarks
from bench.report.statistics import paired
from bench.site.cells import Page, page_of
from bench.site.lines import tabs
from bench.site.pages import write_pages
from bench.store.metrics import Measurement, rate
from bench.store.record import Record
from bench.store.store import Store

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
SEEDS = REFERENCE.with_name("seeds")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
MARKUP = (
    "<img src=x onerror='document.title=1'><script>document.title=2</script></script>\"'&{{7*7}}"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    sync = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file; at the end no page has complained, or asked for anything but files of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    said: list[str] = []
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda m: said.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith(("file:", "data:", "blob:", "about:")) else said.append(r.url)
        ),
    )

    def go(path: Path, fragment: str = "") -> Any:
        page.goto(path.absolute().as_uri() + fragment)
        return page

    yield go
    context.close()
    assert said == []


def written(records: list[Record], out: Path, root: Path | None = None) -> Path:
    return write_pages(records, Store(root or out), out, "Leaderboard")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of some reference records."""
    out = tmp_path_factory.mktemp("leaderboard")
    methods, tasks = {"none", "esd", "p-esd"}, {"church", "nudity", "van-gogh", "retain"}
    some = [
        r
        for r in Store(REFERENCE)
        if r.cell.method.name in methods and r.cell.task in tasks and r.cell.seed == 0
    ]
    return written(some, out, REFERENCE)


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"#lines tbody td:nth-child({number}) .value").all_inner_texts()


def methods(page: Any) -> list[str]:
    texts = page.locator("#lines tbody td:first-child").all_inner_texts()
    return [text.strip().splitlines()[0] for text in texts]


def kept(accuracy: float, method: str) -> Record:
    r = result("none", [True], method=method, task="retain")
    return replace(r, measurements={"accuracy": Measurement(accuracy, 50, 0, accuracy, accuracy)})


# ---------------------------------------------------------------------------- what it says
def test_the_best_known_attack_counts_a_prompt_that_any_attack_brings_back() -> None:
    some = [
        result("none", [False, False, False, False]),
        result("p4d", [True, False, False, None]),
        result("unlearndiff", [False, True, False, None]),
    ]
    (tab,) = tabs(some)
    (line,) = tab.lines
    assert line.outcomes["best"] == "110?"
    figure = line.entries["best"].figure
    expected = rate([True, True, False])
    assert (figure.value, figure.n, figure.unscored) == (pytest.approx(1 - 2 / 3), 3, 1)
    assert (figure.low, figure.high) == (1 - expected.high, 1 - expected.low)


def test_an_interval_that_begins_at_zero_is_handed_to_the_page(tmp_path: Path) -> None:
    """The page draws a band where both ends are there; zero is an end."""
    page = written([result("none", [True] * 4)], tmp_path / "out")
    data = re.search(
        r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S
    )
    assert data is not None
    (entry,) = (
        e for e in json.loads(data[1])["tabs"][0]["lines"][0]["entries"].values() if "n" in e
    )
    assert (entry["value"], entry["low"]) == (0.0, 0.0)
    assert entry["high"] == pytest.approx(1 - rate([True] * 4).low)


def test_a_line_has_its_utility_cost_and_size() -> None:
    plain = replace(result("none", [False] * 50), erasure={"seconds": 12.5, "bytes": 69_104})
    (tab,) = tabs([plain, kept(0.9, "esd")])
    entries = tab.lines[0].entries
    assert entries["kept retain accuracy"].figure.value == 0.9
    assert entries["seconds"].figure.value == 12.5
    assert entries["bytes"].figure.value == 69_104


def flagged(*records: Record) -> set[str]:
    return {flag.short for tab in tabs(records) for line in tab.lines for flag in line.flags
            if line.names["method"].startswith("esd")}  # fmt: skip


def test_flags() -> None:
    fine = result("none", [False] * 50)
    assert flagged(fine) == set()
    assert flagged(result("none", [False] * 20)) == {"N=20"}
    assert flagged(result("none", [False] * 47 + [None] * 3)) == {"unscored"}
    assert flagged(replace(fine, erasure={"sampler_time": True})) == {"not adaptive"}
    base = replace(result("none", [True] * 50, method="none"))
    assert flagged(fine, base, kept(0.9, "esd"), kept(0.98, "none")) == set()
    assert flagged(fine, base, kept(0.4, "esd"), kept(0.98, "none")) == {"model broken"}
    failed = Record(result("p4d", [True] * 50).cell, "failed", reason="boom")
    assert flagged(fine, failed) == {"failed"}


def test_fid_of_another_size_is_flagged_on_photographs() -> None:
    def photo(r: Record) -> Record:
        return replace(r, cell=replace(r.cell, world="photo", model="sd14"))

    coco = photo(result("none", [True], task="coco"))
    few, many = (replace(coco, measurements={"fid": Measurement(17.0, n)}) for n in (5_000, 30_000))
    fine = photo(result("none", [False] * 50))
    assert flagged(fine, few) == {"FID size"}
    assert flagged(fine, many) == set()


def test_lines_of_one_group_share_a_letter_and_the_unchanged_model_has_none() -> None:
    best = result("none", [False] * 50, method="best")
    alike = result("none", [False] * 47 + [True] * 3, method="alike")
    worse = result("none", [False] * 25 + [True] * 25, method="worse")
    (tab,) = tabs([best, alike, worse, result("none", [True] * 50, method="none")])
    ties = {line.names["method"]: e.figure.word for line in tab.lines
            if (e := line.entries.get("ties"))}  # fmt: skip
    assert ties == {"best": "a", "alike": "a", "worse": "b"}


def test_only_lines_of_one_set_of_prompts_have_letters() -> None:
    many = [result("none", [i < hits for i in range(50)], method=f"m{hits}") for hits in (0, 3, 30)]
    few = [result("none", [i < hits for i in range(8)], method=f"few{hits}") for hits in (0, 8)]
    (tab,) = tabs([*few, *many])
    assert {line.names["method"]: e.figure.word for line in tab.lines
            if (e := line.entries.get("ties"))} == {"m0": "a", "m3": "a", "m30": "b"}  # fmt: skip
    assert "largest group on one set" in next(c.about for c in tab.columns if c.key == "ties")


def test_a_model_of_ones_own_is_not_called_unchanged() -> None:
    shipped, own = (result("none", [False] * 50, method="none") for _ in range(2))
    own = replace(own, cell=replace(own.cell, model="../w/whole"))
    (tab,) = tabs([shipped, own])
    assert sorted(line.role for line in tab.lines) == ["base", "given"]


def test_a_command_that_only_its_user_can_run_promises_nothing(tmp_path: Path) -> None:
    r = result("none", [False])
    assert remarks(r) == ()
    own = replace(r, cell=replace(r.cell, task="t2", model="/cache/models/0123"))
    assert "--task FILE.toml" in command(own)
    task, model = remarks(own)
    assert "'t2'" in task and "/cache/models/0123" in model and "may be deleted" in model
    for each, promised in ((r, True), (own, False)):
        index = written([each], tmp_path / str(promised))
        page = next((index.parent / "cells").glob("*.html")).read_text()
        assert ("has the same cell number" in page) is promised
        assert ("own task" in page) is not promised


def test_a_line_that_met_fewer_attacks_says_so() -> None:
    every = [result(attack, [False] * 50) for attack in ("none", "p4d", "unlearndiff")]
    some = [result(attack, [False] * 50, method="half") for attack in ("none", "p4d", "random")]
    none = result("none", [False] * 50, method="never")
    (tab,) = tabs([*every, *some, none])
    said = {line.names["method"]: [flag.short for flag in line.flags] for line in tab.lines}
    assert said == {"esd": [], "half": ["fewer attacks"], "never": ["not attacked"]}
    assert [line.names["method"] for line in tab.lines if "best" in line.entries] == [
        "esd",
        "half",
    ]
    marked = {line.names["method"]: e.figure.flags
              for line in tab.lines if (e := line.entries.get("best"))}  # fmt: skip
    assert marked == {"esd": (), "half": ("fewer attacks",)}
    (alone,) = tabs([none])
    assert "best" not in {c.key for c in alone.columns}
    assert alone.lines[0].flags == ()


def test_floors_stand_last_and_the_never_learned_model_is_in_every_bar() -> None:
    some = [
        result(attack, [i < hits for i in range(50)], method=method)
        for method, hits in (("esd", 20), ("never-learned", 5))
        for attack in ("seed-search", "random", "none", "p4d")
    ]
    (tab,) = tabs(some)
    columns = {c.key: c for c in tab.columns}
    assert list(columns) == [
        "method", "best", "attack none", "attack p4d", "seconds", "bytes", "flags",
        "attack random", "attack seed-search",
    ]  # fmt: skip
    assert columns["attack p4d"].reference == columns["best"].reference == 0.9
    assert columns["attack random"].about.startswith("Concept erasing rate")
    assert "floor" in columns["attack random"].about
    assert {line.role for line in tab.lines} == {"", "reference"}


def test_attacks_beyond_the_prompt_are_no_part_of_the_best_known() -> None:
    weights = replace(result("relearn", [True] * 50), space="weights")
    (tab,) = tabs([result("none", [False] * 50), result("p4d", [False] * 50), weights])
    assert tab.lines[0].entries["best"].figure.value == 1.0
    assert tab.lines[0].entries["attack relearn"].figure.value == 0.0


def drawn(record: Record, root: Path) -> Page:
    """Return the page of a record beside which lies a picture: a sharp edge."""
    picture = Image.new("RGB", (96, 96), "white")
    picture.paste("black", (0, 0, 48, 96))
    path = root / "picture.png"
    picture.save(path)
    return page_of(record, path)


def shades(page: Page) -> set[Any]:
    data = base64.b64decode(page.picture.removeprefix("data:image/png;base64,"))
    return {colour for _, colour in Image.open(io.BytesIO(data)).getcolors(9999) or ()}


def test_the_facts_of_a_cell_are_written_as_people_read_them() -> None:
    made = replace(
        result("none", [True]),
        protocol={"judge": "emoji-body:part=arm,threshold=None", "draw": "fp32"},
        erasure={"parts": {"unet": 199, "text_encoder": 2}, "sampler_time": False,
                 "notes": {"share": 0.0011918973410658166, "histogram": [3, 4]}},
    )  # fmt: skip
    facts = {heading: dict(told) for heading, told in page_of(made, Path("none.png")).facts.items()}
    assert facts["Protocol"]["judge"] == "emoji-body, part arm"
    assert facts["Protocol"]["draw"] == "fp32"
    assert facts["Erasure"] == {
        "parts": "unet: 199; text_encoder: 2",
        "works while sampling": "no",
        "notes": "share: 0.0011919; histogram: 3, 4",
    }


def test_a_picture_is_shown_blurred_where_it_may_be_unsafe(tmp_path: Path) -> None:
    fine = result("none", [False])
    sharp = {(0, 0, 0), (255, 255, 255)}
    assert shades(drawn(fine, tmp_path)) == sharp
    assert not drawn(fine, tmp_path).hidden
    emoji = replace(fine, cell=replace(fine.cell, concept=Concept("nudity", "nsfw")))
    assert shades(drawn(emoji, tmp_path)) == sharp
    assert drawn(emoji, tmp_path).hidden
    photo = replace(emoji, cell=replace(emoji.cell, world="photo"))
    assert len(shades(drawn(photo, tmp_path))) > 10
    assert drawn(photo, tmp_path).hidden
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert page_of(fine, tmp_path / "broken.png").picture == ""
    assert page_of(fine, tmp_path / "none.png").picture == ""


# ---------------------------------------------------------------------------- in a browser
def test_tabs_and_sorting(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference)
    assert page.locator("[role=tab]").all_inner_texts() == ["church", "nudity", "van-gogh"]
    assert methods(page) == ["p-esd", "esd", "none"]  # the best under the best known attack first
    page.get_by_role("tab", name="van-gogh").click()
    assert set(methods(page)) == {"p-esd", "esd", "none"}
    page.locator("thead th", has_text="No attack").locator(".dt-column-order").click()
    shown = list(map(float, column(page, 3)))
    assert shown == sorted(shown, reverse=True)
    page.locator("thead th", has_text="No attack").locator(".dt-column-order").press("Enter")
    assert list(map(float, column(page, 3))) == sorted(shown)


def test_a_figure_leads_to_its_cell(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference)
    page.locator("tbody tr", has_text="p-esd").locator("a.value").nth(1).click()
    page.wait_for_url("**/cells/*.html")
    assert "p-esd" in page.locator("h1").inner_text()
    assert "bench run" in page.locator("#command").inner_text()
    adversarial = page.locator("td details").first
    assert adversarial.get_attribute("open") is None
    assert page.locator("tbody tr").count() == 50


def test_a_definition_by_pointer_tap_and_keyboard(
    visit: Callable[..., Any], reference: Path
) -> None:
    page = visit(reference)
    about, box = (
        page.get_by_role("button", name="What is Best known prompt attack?"),
        page.locator("#definition"),
    )
    for shows in (about.hover, about.click, about.focus):
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        assert box.is_hidden()
        shows()
        assert "no attack here that finds prompts brings it back" in box.inner_text()
    about.press("Escape")
    assert box.is_hidden()
    assert methods(page) == ["p-esd", "esd", "none"]  # a tap on a definition sorts nothing


def test_a_keyboard_suffices(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference)
    page.get_by_role("tab", name="church").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", selected=True).inner_text() == "van-gogh"
    page.get_by_label("compare p-esd", exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_label("compare esd", exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Compare", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    page.locator("a.value").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/cells/*.html")


def hostile() -> list[Record]:
    """Records with markup wherever a stranger can write."""
    some = [result(attack, [True] * 25 + [False] * 25) for attack in ("none", MARKUP)]
    some = [
        replace(
            r,
            cell=replace(
                r.cell, task=MARKUP, model=MARKUP, method=Ref(MARKUP, {MARKUP: MARKUP}), seed=seed
            ),
            rows=tuple(
                replace(row, text=MARKUP, id=f"{MARKUP} {row.id}", adversarial=MARKUP)
                for row in r.rows
            ),
            environment={MARKUP: MARKUP},
            protocol={"draw": MARKUP, "judge": MARKUP, "deviations": MARKUP},
            erasure={"notes": {MARKUP: MARKUP}, "seconds": MARKUP, "digest": MARKUP},
        )
        for r in some
        for seed in (0, 1)
    ]
    broken = replace(some[0].cell, seed=2)
    return [*some, Record(broken, "failed", reason=f"plug-in {MARKUP}")]


def test_markup_in_records_is_text(visit: Callable[..., Any], tmp_path: Path) -> None:
    records = hostile()
    index = written(records, tmp_path / "out")
    for path in (index, *(tmp_path / "out" / "cells").glob("*.html")):
        page = visit(path)
        assert "eaderboard" in page.title()
        assert page.locator("img").count() == 0
        assert page.locator("script:not([type])").count() == 0
        assert MARKUP in page.inner_text("body")
    assert len(list((tmp_path / "out" / "cells").glob("*.html"))) == len(records)
    page = visit(index)
    page.locator("#filter summary").click()
    for place, condition in (("0", "="), ("4", "=")):  # lists all values of a column
        page.get_by_role("button", name="Add a condition").click()
        page.locator(".dtsb-data").last.select_option(value=place)
        page.locator(".dtsb-condition").last.select_option(value=condition)
    assert page.locator(".dtsb-value option").count() > 2
    for box in page.locator("#lines input").all()[:2]:
        box.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    assert MARKUP in page.locator("dialog").inner_text()
    page.locator("dialog summary").first.click()
    page.keyboard.press("Escape")
    page.locator("button.flag, button.define").first.hover()
    assert page.locator("img").count() == 0
    assert "eaderboard" in page.title()


def test_text_that_hides_or_turns_the_line_is_made_visible(tmp_path: Path) -> None:
    name = "e\u202esd\x1b[31m"
    index = written([result("none", [True], method=name)], tmp_path)
    for path in (index, *(tmp_path / "cells").glob("*.html")):
        text = path.read_text("utf-8").partition("</style>")[2]
        assert "\u202e" not in text
        assert "\x1b" not in text


def test_a_page_allows_nothing_but_its_own_script(reference: Path) -> None:
    pages = [reference, *sorted((reference.parent / "cells").glob("*.html"))[:2]]
    for path in pages:
        html = unescape(path.read_text("utf-8"))
        policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[
            0
        ]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy


def test_all_but_the_floors_fit_a_laptop(visit: Callable[..., Any], tmp_path: Path) -> None:
    """Of the reference records, whose table has a retain task and four columns of floors, too."""
    tasks = {"church", "retain"}
    some = [r for r in Store(REFERENCE) if r.cell.task in tasks and r.cell.seed == 0]
    page = visit(written(some, tmp_path, REFERENCE))
    heads = [text.split("\n")[0] for text in page.locator("#lines thead th").all_inner_texts()]
    last = next(i for i, head in enumerate(heads) if head.startswith("Flags"))
    assert last >= 10
    assert {head.split("-")[0].split()[0] for head in heads[last + 1 :]} == {"random", "seed"}
    flags, box = (
        page.locator(at).bounding_box() for at in (f"#lines thead th >> nth={last}", "#lines .wide")
    )
    assert flags["x"] + flags["width"] <= box["x"] + box["width"]
    page.set_viewport_size({"width": 800, "height": 900})
    page.locator("#lines .wide").evaluate("box => box.scrollBy(9999, 0)")
    assert page.locator("#lines .wide").evaluate("box => box.scrollLeft") > 0


def test_lines_of_one_method_are_told_apart_by_name(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    some = [r for r in Store(SEEDS) if (r.cell.task, r.cell.method.name) == ("church", "esd")]
    page = visit(written([r for r in some if r.cell.erase_seed is None], tmp_path / "seed", SEEDS))
    for seed in (0, 1, 2):
        assert page.get_by_label(f"compare esd, seed {seed}", exact=True).count() == 1
    page = visit(written(some, tmp_path / "both", SEEDS))
    boxes = page.locator("#lines tbody input[type=checkbox]")
    told = boxes.evaluate_all("all => all.map(box => box.getAttribute('aria-label'))")
    seeds = {(r.cell.seed, r.cell.erase_seed) for r in some}
    assert len(set(told)) == len(told) == len(seeds) == 7


def test_a_phone_has_no_sideways_scroll(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("tbody tr").first.locator("a.value").first.click()
    page.wait_for_url("**/cells/*.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_search_filters_and_their_address(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference, "#task=church")
    page.locator("#search").fill("esd")
    assert methods(page) == ["p-esd", "esd"]
    page.locator("#filter summary").click()
    page.get_by_role("button", name="Add a condition").click()
    page.locator(".dtsb-data").select_option(label="p4d")
    page.locator(".dtsb-condition").select_option(label="Greater Than")
    page.locator(".dtsb-input").fill("0.95")
    page.locator("#lines tbody tr").nth(1).wait_for(state="detached")
    assert methods(page) == ["p-esd"]
    assert page.locator("#state").inner_text().startswith("1 of 3 lines: “esd”, p4d > 0.95")
    address = page.url.partition("#")[2]
    visit(reference, "#task=van-gogh")
    assert set(methods(page)) == {"p-esd", "esd", "none"}
    page.goto("about:blank")
    visit(reference, f"#{address}")
    assert methods(page) == ["p-esd"]
    assert page.locator("#search").input_value() == "esd"
    page.get_by_role("button", name="Show all").click()
    assert methods(page) == ["p-esd", "esd", "none"]
    assert page.url.endswith("#task=church&sort=best+desc")


def test_only_complete_lines_and_only_those_without_flags(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    some = [
        result("none", [False] * 50, method="whole"),
        result("p4d", [True] * 50, method="whole"),
        result("none", [False] * 50, method="half"),
        result("p4d", [True] * 50, method="half"),
        replace(result("none", [False] * 50, method="sly"), erasure={"sampler_time": True}),
        result("p4d", [True] * 50, method="sly"),
    ]
    some[0] = replace(some[0], erasure={"seconds": 1.0, "bytes": 1})
    page = visit(written(some, tmp_path))
    page.get_by_label("only complete lines").check()
    assert methods(page) == ["whole"]
    page.get_by_label("only complete lines").uncheck()
    page.get_by_label("no flags").check()
    assert sorted(methods(page)) == ["half", "whole"]


def downloaded(page: Any, name: str) -> str:
    with page.expect_download() as download:
        page.locator(f"#{name}").click()
    return Path(download.value.path()).read_text("utf-8")


def test_an_export_has_what_is_selected_with_its_intervals(
    visit: Callable[..., Any], reference: Path
) -> None:
    page = visit(reference, "#task=church&search=esd")
    table = list(csv.DictReader(io.StringIO(downloaded(page, "csv"))))
    ours = next(line for line in table if line["Method"] == "p-esd")
    assert len(table) == 2
    record = next(
        r for r in Store(REFERENCE)
        if (r.cell.task, r.cell.method.name, r.cell.attack.name, r.cell.seed)
        == ("church", "p-esd", "unlearndiff", 0)
    )  # fmt: skip
    asr = record.measurements["asr"]
    assert float(ours["unlearndiff"]) == 1 - asr.value
    assert float(ours["unlearndiff low"]) == 1 - asr.high
    assert float(ours["unlearndiff high"]) == 1 - asr.low
    assert (ours["unlearndiff n"], ours["unlearndiff unscored"]) == ("50", "0")
    assert float(ours["Delta, bytes"]) == record.erasure["bytes"]
    page.get_by_label("compare esd", exact=True).check()
    (line,) = json.loads(downloaded(page, "json"))
    assert (line["Method"], line["retain accuracy n"]) == ("esd", 130)


def test_an_export_gives_a_spreadsheet_no_formula(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    evil = '=HYPERLINK("http://x"),1'
    page = visit(written([result("none", [True], method=evil)], tmp_path))
    (line,) = csv.DictReader(io.StringIO(downloaded(page, "csv")))
    assert line["Method"] == f"'{evil}"


def test_two_lines_compared(visit: Callable[..., Any], reference: Path) -> None:
    page = visit(reference, "#task=church")
    page.get_by_label("compare esd", exact=True).check()
    page.get_by_label("compare p-esd", exact=True).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    line = page.locator("dialog tbody tr", has_text="unlearndiff").locator("td")
    esd, p_esd = (
        [row.success for row in r.rows]
        for name in ("esd", "p-esd")
        for r in Store(REFERENCE)
        if (r.cell.task, r.cell.method.name, r.cell.attack.name, r.cell.seed)
        == ("church", name, "unlearndiff", 0)
    )
    only_esd = sum(b and not a for a, b in zip(esd, p_esd, strict=True))
    only_p_esd = sum(a and not b for a, b in zip(esd, p_esd, strict=True))
    p = binomtest(only_esd, only_esd + only_p_esd).pvalue
    said = line.all_inner_texts()
    values = [1 - sum(successes) / len(successes) for successes in (esd, p_esd)]
    assert said[0:2] == [f"{value:.2f}" for value in values]
    d = paired(p_esd, esd)  # fewer successes of the second are more erased prompts of the first
    low, high = (f"{x:+.2f}".replace("-", "−") for x in (d.low, d.high))
    apart = f"{values[0] - values[1]:+.2f}".replace("-", "−")
    assert said[2].strip() == f"{apart} [{low}, {high}]"
    assert said[3] == "50"
    assert said[4].splitlines()[0].endswith(f"{only_esd} : {only_p_esd}")
    assert said[5] == f"{p:.3f}"
    assert "compare=" in page.url
    page.reload()
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()


def test_lines_of_other_prompts_are_not_paired(visit: Callable[..., Any], tmp_path: Path) -> None:
    first, second = result("none", [True] * 40), result("none", [True] * 40, method="uce")
    second = replace(second, rows=tuple(replace(row, seed=row.seed + 1) for row in second.rows))
    page = visit(written([first, second], tmp_path))
    for box in page.locator("#lines input").all():
        box.check()
    page.get_by_role("button", name="Compare", exact=True).click()
    assert "different prompts" in page.locator("dialog").inner_text()


# ---------------------------------------------------------------------------- many records
def many(tasks: int, methods: int, attacks: int) -> Iterator[Record]:
    """Yield records of 50 prompts, drawn at random."""
    draw = random.Random(0)
    for task, method, attack in product(range(tasks), range(methods), range(attacks)):
        name = f"attack-{attack}" if attack else "none"
        outcomes = [draw.random() < (method + attack) / (methods + attacks) for _ in range(50)]
        r = result(name, outcomes, method=f"method-{method}", task=f"task-{task}")
        rows = tuple(
            replace(row, id=f"p-{row.id}", text="a photograph of a church in the sand",
                    adversarial="abbey chapel snow a photograph of a church in the sand")
            for row in r.rows
        )  # fmt: skip
        yield replace(r, rows=rows, erasure={"seconds": 1.0 + method, "bytes": 1000 * method})


@pytest.mark.slow
def test_five_thousand_records_in_time(visit: Callable[..., Any], cli: Callable[..., Any]) -> None:
    store = Store(Path("many"))
    for record in many(14, 40, 9):
        store.put(record)
    began = time.process_time()  # of this process: another one on the machine costs nothing
    assert cli("report", "--results", "many").code == 0
    assert time.process_time() - began < 10  # 5 on a machine that does nothing else
    began = time.process_time()
    assert cli("leaderboard", "--results", "many", "--out", "board").code == 0
    assert time.process_time() - began < 30
    assert len(list(Path("board/cells").iterdir())) == 5040
    page = visit(Path("board/index.html"))
    assert page.locator("#lines tbody tr").count() == 40


@pytest.mark.slow
def test_five_thousand_lines_sort_in_half_a_second(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    page = visit(written(list(many(1, 5000, 1)), tmp_path))
    assert page.locator("#state").inner_text() == "5000 of 5000 lines"
    took = []
    for _ in range(5):
        before = page.evaluate("performance.now()")
        page.locator("thead th", has_text="No attack").locator(".dt-column-order").press("Enter")
        page.evaluate("new Promise(requestAnimationFrame)")
        took.append(page.evaluate("performance.now()") - before)
    assert min(took) < 500  # the best of five: the machine may be busy


# ---------------------------------------------------------------------------- the command
def test_the_command_writes_pages(cli: Callable[..., Any]) -> None:
    said = cli("leaderboard", "--results", str(REFERENCE), "--task", "church", "--out", "board")
    assert said.code == 0
    assert said.out == "board/index.html: open it in a browser\n"
    told = cli(
        "leaderboard", "--results", str(REFERENCE), "--task", "church", "--out", "board", "--json"
    )
    assert json.loads(told.out)["index"] == "board/index.html"
    typo = cli("leaderboard", "--results", str(REFERENCE), "--task", "chruch", "--out", "board")
    assert (typo.code, "Did you mean 'church'" in typo.err) == (2, True)
    data = Path("board/index.html").read_text("utf-8").partition('id="data">')[2]
    (tab,) = json.loads(data.partition("</script>")[0])["tabs"]
    assert tab["title"] == "church"
    assert cli("leaderboard", "--results", "nowhere", "--out", "board").code == 2
    Path("file").write_text("")
    assert cli("leaderboard", "--results", str(REFERENCE), "--out", "file").code == 5
