"""Judges a folder of images that were made elsewhere: no model, but the judging and the record of a run."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from bench.core.digest import digest
from bench.core.errors import AssetError, PluginError, SpecError
from bench.core.types import UNSCORED, Prompt, Sample, World
from bench.engine.images import Source
from bench.engine.judge import Judges, judge_samples
from bench.engine.provenance import environment, judged_by, names_of
from bench.engine.settings import Settings, timed
from bench.engine.stream import Stream
from bench.plan.cell import Cell
from bench.plan.plan import Job, images_cell, missing
from bench.plan.spec import check_whole
from bench.sources.catalog import SAMPLING
from bench.store.record import Record, Row
from bench.tasks.entries import Entry
from bench.tasks.lookup import homes
from bench.tasks.tasks import ProtocolName, Task, load_task, needs

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
SMALL = 64  # pixels; what is larger is no emoji scene
_DEPTHS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}


@dataclass(frozen=True, slots=True)
class Matched:
    """Which image belongs to which prompt.

    Args:
        files: By the prompt's id, of prompts that run only.
        rule: "id": a file's name says the prompt; "order": files and rows go in pairs.
        missing: Ids of prompts without an image.
        unused: Images of rows that never run.
    """

    files: Mapping[str, Path]
    rule: Literal["id", "order"]
    missing: tuple[str, ...]
    unused: int

    @property
    def revision(self) -> str:
        """A digest of the images, wherever they lie and whatever their names are."""
        return digest([[name, _digest(path)] for name, path in sorted(self.files.items())])

    def __str__(self) -> str:
        total = len(self.files) + len(self.missing)
        how = "the names of files" if self.rule == "id" else "the order of files"
        text = f"{len(self.files)} of {total} prompts have an image, matched by {how}"
        if self.missing:
            text += f"; unscored, as there is none: {', '.join(self.missing[:3])}"
            text += ", ..." if len(self.missing) > 3 else ""
        if self.unused:
            text += f"; {self.unused} images of prompts that never run are not judged"
        return text


def plan_folder(
    folder: Path,
    name: str | Entry,
    world: World | None = None,
    *,
    given: Mapping[str, Path] | None = None,
    prompts: Path | None = None,
    judge: str = "",
    protocol: ProtocolName = "default",
    label: str = "",
    in_order: bool = False,
    limit: int | None = None,
) -> tuple[Job, Matched]:
    """Return the job of a folder's images as a task's, and which image is whose.

    Args:
        folder: Where the images lie.
        name: The task: a name, a file ``PATH.toml``, or what such a file says.
        world: Whose task; by default the only one that has it, or else emoji for images of at most 64
            pixels and photo for larger ones.
        given: Local paths of assets.
        prompts: As for :func:`bench.tasks.tasks.load_task`.
        judge: Likewise.
        protocol: Likewise.
        label: What to call the images in tables.
        in_order: Pair files and prompts in order, whatever the names say.
        limit: First prompts of the task only.

    Raises:
        SpecError: The folder or the request makes no sense.
        AssetError: The task's prompts or a judge's files are not here.
    """
    if world not in {None, *SAMPLING}:
        raise SpecError(f"--world: expected emoji or photo, got {world!r}")
    check_whole("--limit", limit, 1)
    files, given = find_images(folder), given or {}
    having = list(homes(name))
    home = world or (having[0] if len(having) == 1 else world_of(files))
    wanted = needs(name, home, prompts=prompts, judge=judge, protocol=protocol)
    if lines := missing(wanted, given):
        raise AssetError("; ".join(lines.values()))
    task = load_task(
        name,
        home,
        given=given,
        prompts=prompts,
        judge=judge,
        protocol=protocol,
        limit=limit,
    )
    task = replace(task, prompts=task.prompts[:limit])
    if judge and task.role != "target":
        raise SpecError(f"--judge: expected a target task to use it for, got {task.name!r}")
    matched = match(files, task, in_order=in_order)
    return Job(images_cell(task, matched.revision, given, label=label), task), matched


def find_images(folder: Path) -> list[Path]:
    """Return a folder's images in the order in which people count.

    Raises:
        SpecError: It is no folder, or has none.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: expected a folder of images, there is none")
    inside = [p for p in folder.iterdir() if _is_image(p) and p.is_file()]
    if not inside:
        kinds = ", ".join(sorted(SUFFIXES))
        deeper = sum(map(_is_image, folder.rglob("*")))
        hint = f"; {deeper} lie in folders inside it, judge each of these" if deeper else ""
        raise SpecError(f"{folder}: expected images ({kinds}), there are none{hint}")
    return sorted(inside, key=_counted)


def _is_image(path: Path) -> bool:
    """Say whether a name is an image's; beside each image macOS may leave a hidden "._NAME"."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def world_of(files: Sequence[Path]) -> World:
    """Return the world whose images have this size: that of the first one that can be read."""
    for path in files:
        try:
            with Image.open(path) as image:
                return "emoji" if max(image.size) <= SMALL else "photo"
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    return "photo"


def match(files: Sequence[Path], task: Task, *, in_order: bool = False) -> Matched:
    """Pair images with a task's prompts.

    A file's name is a prompt's id, with zeros before a number or not, or begins with it ("12_0.png"), or
    ends in it ("COCO_val2014_000000000042.jpg"); one rule holds for all files. Otherwise there must be as
    many files as rows, of the whole set or of those that run, and the order decides, as with ``in_order``.

    Raises:
        SpecError: They fit in neither way.
    """
    named = {} if in_order else _by_id(files, task.rows)
    running = [prompt.id for prompt in task.prompts]
    rule: Literal["id", "order"] = "id" if named else "order"
    if not named:
        rows = next((r for r in (task.rows, running) if len(r) == len(files)), None)
        if rows is None:
            raise SpecError(
                f"{files[0].parent}: expected images named by their prompts' ids "
                f"({', '.join(running[:2])}, ...), or one for each of the {len(task.rows)} rows of "
                f"{task.source}; got {len(files)}, the first is {files[0].name}"
            )
        named = dict(zip(rows, files, strict=True))
    found = {name: named[name] for name in running if name in named}
    if not found:
        raise SpecError(f"{files[0].parent}: all its images are of prompts that never run")
    without = tuple(name for name in running if name not in named)
    return Matched(found, rule, without, len(files) - len(found))


def judge_images(job: Job, matched: Matched, settings: Settings) -> Record:
    """Return the record of images that are there already, judged as a run judges its own.

    An image that is missing, cannot be read or is all black is unscored, with the reason in its row.
    """
    try:
        return _judged(job.cell, job.task, matched, settings)
    except PluginError as exc:
        return Record(job.cell, "failed", reason=f"{type(exc).__name__}: {exc}")


def _judged(cell: Cell, task: Task, matched: Matched, settings: Settings) -> Record:
    seconds: dict[str, float] = {}
    judges = Judges(settings)

    def read(prompts: Sequence[Prompt], shard: tuple[int, int]) -> list[Sample]:
        settings.progress("judge", *shard)
        return [Sample(prompt, open_image(matched.files.get(prompt.id))) for prompt in prompts]

    def shards() -> Iterator[list[Sample]]:
        for start in range(0, len(task.prompts), settings.shard):
            yield read(task.prompts[start : start + settings.shard], (start, len(task.prompts)))

    rows: tuple[Row, ...] = ()
    if task.streamed:
        source = Source(["images", cell.revision], read)
        measured = Stream(settings, judges).measure(cell, task, task.prompts, source, seconds)
    else:
        with timed(seconds, "judge"):
            measured, rows = judge_samples(judges, cell, task, task.prompts, shards)
    protocol = {**judged_by(task), "draw": f"images made elsewhere, matched by {matched.rule}"}
    return Record(
        cell,
        "ok",
        measurements=measured,
        rows=rows,
        seconds={stage: round(s, 3) for stage, s in seconds.items()},
        environment=environment(settings.device, names=names_of(cell, task)),
        excluded=task.excluded,
        protocol=protocol,
    )


def open_image(path: Path | None) -> Image.Image:
    """Return an image in RGB, upright; one that must not be judged says why in its ``info``."""
    try:
        if path is None:
            raise ValueError("there is no image of this prompt")
        with Image.open(path) as image:
            if image.mode not in _DEPTHS:
                raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            if upright.getbbox() is None:  # nothing was drawn, so nothing says what was erased
                raise ValueError("it is all black: blacked out by a filter, or not finite")
            return upright
    except Exception as exc:  # every kind of damage has an exception of its own
        nothing = Image.new("RGB", (SMALL, SMALL))
        nothing.info[UNSCORED] = f"{path.name}: {exc}" if path else str(exc)
        return nothing


def _by_id(files: Sequence[Path], ids: Sequence[str]) -> dict[str, Path]:
    """Return files by the id that their names say, if one rule fits them all.

    Raises:
        SpecError: Every rule that fits gives two files to one prompt, or one fits most files, not all.
    """
    whole = _whole if len(set(map(_whole, ids))) == len(ids) else str  # "01" may not be "1"
    known = {whole(name): name for name in ids}
    rules: tuple[Callable[[str], str], ...] = (
        lambda stem: stem,
        lambda stem: stem.partition("_")[0],
        lambda stem: (re.findall(r"\d+$", stem) or [""])[0],
    )
    twice, strangers = "", list(files)
    for rule in rules:
        names = [known.get(whole(rule(path.stem))) for path in files]
        if None in names:
            unknown = [path for path, name in zip(files, names, strict=True) if name is None]
            strangers = min(strangers, unknown, key=len)
            continue
        if len(set(names)) == len(files):
            return {str(name): path for name, path in zip(names, files, strict=True)}
        (name, _), *_ = Counter(names).most_common(1)
        both = ", ".join(p.name for p, n in zip(files, names, strict=True) if n == name)
        twice = f"prompt {name} has several: {both}"
    if twice:
        raise SpecError(f"{files[0].parent}: expected one image for each prompt, {twice}")
    if 2 * len(strangers) < len(files):
        raise SpecError(
            f"{files[0].parent}: {len(files) - len(strangers)} images are named by prompts' ids, but "
            f"{strangers[0].name} is not: put what is no prompt's image elsewhere, or give --in-order"
        )
    return {}


def _whole(text: str) -> str:
    """Return a number without the zeros before it, and any other text as it is."""
    return text.lstrip("0") or "0" if text.isascii() and text.isdecimal() else text


def _counted(path: Path) -> tuple[tuple[str, int], ...]:
    """Return a key that sorts "2.png" before "10.png"."""
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return tuple((text, int(number or -1)) for text, number in parts)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:  # its row says why
        return ""
