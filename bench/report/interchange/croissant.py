"""Croissant 1.0 with RAI fields: what the files of results and prompts hold, and what to know of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bench.report.interchange.common import (
    ABOUT,
    PROJECT,
    Export,
    base,
    csv_file,
    own_version,
    plug,
)
from bench.store.record import Record

_TEXT, _FLOAT, _INTEGER = "sc:Text", "sc:Float", "sc:Integer"
_RESULTS = {
    "cell": (_TEXT, "Content address of the cell: equal inputs, equal address."),
    "world": (_TEXT, "Family of models: emoji or photo."),
    "model": (_TEXT, "The base model."),
    "method": (_TEXT, "The method that erased, with its parameters."),
    "concept": (_TEXT, "What was erased."),
    "task": (_TEXT, "Which prompts were drawn."),
    "attack": (
        _TEXT,
        "The attack, with its parameters; none if the prompts were drawn as they are.",
    ),
    "seed": (_INTEGER, "Seed of the cell."),
    "status": (_TEXT, "ok, skipped or failed."),
    "measure": (_TEXT, "What was measured."),
    "value": (_FLOAT, "The number; empty where there is none."),
    "low": (_FLOAT, "Lower end of its 95 % interval; a measure of a whole set has none."),
    "high": (_FLOAT, "Upper end of its 95 % interval."),
    "n": (_INTEGER, "Images or prompts that it rests on."),
    "unscored": (_INTEGER, "Images that could not be scored; they count neither way."),
}
_PROMPTS = {
    "cell": (_TEXT, "The cell, as in the results."),
    "prompt": (_TEXT, "Name of the prompt in its set."),
    "text": (_TEXT, "The prompt."),
    "seed": (_INTEGER, "Seed of its image."),
    "judged": (_TEXT, "yes if the judge found what it looks for, no, or unscored if it could not tell."),
    "adversarial": (_TEXT, "The text that the attack found, if there was one."),
}  # fmt: skip
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    term: f"cr:{term}"
    for term in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject",
        "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField",
        "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
        "source", "subField", "transform",
    )
}  # fmt: skip


def export(records: list[Record], now: float) -> Export:
    """Return ``croissant.json`` and the CSV files that it describes."""
    results = csv_file(list(_RESULTS), [line for r in records for line in _results(r)])
    prompts = csv_file(list(_PROMPTS), [line for r in records for line in _prompts(r)])
    tables = {"results": (results, _RESULTS), "prompts": (prompts, _PROMPTS)}
    metadata = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{PROJECT}-results",
        "description": ABOUT,
        "version": _semantic(own_version()),
        "datePublished": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d"),
        **_responsible(records),
        "distribution": [_distribution(name, data) for name, (data, _) in tables.items()],
        "recordSet": [_record_set(name, fields) for name, (_, fields) in tables.items()],
    }
    whole = json.dumps(metadata, indent=1).encode()
    return Export({"results.csv": results, "prompts.csv": prompts, "croissant.json": whole})


def _results(r: Record) -> list[Sequence[object]]:
    c = r.cell
    about = (
        c.id,
        c.world,
        base(r),
        plug(c.method),
        c.concept.name,
        c.task,
        plug(c.attack),
        c.seed,
        r.status,
    )
    numbers = [
        (m.called(metric), m.value, m.low, m.high, m.n, m.unscored)
        for metric, m in r.measurements.items()
    ]
    return [(*about, *each) for each in numbers or [("", None, None, None, 0, 0)]]


def _prompts(r: Record) -> list[Sequence[object]]:
    said, cell = {True: "yes", False: "no", None: "unscored"}, r.cell.id
    return [
        (cell, row.id, row.text, row.seed, said[row.success], row.adversarial or "")
        for row in r.rows
    ]


def _responsible(records: Sequence[Record]) -> dict[str, Any]:
    judges = sorted({judge for r in records if (judge := r.protocol.get("judge"))})
    nsfw = any(r.cell.world == "photo" and r.cell.concept.kind == "nsfw" for r in records)
    said = {
        "dataCollection": """Images were generated from erased models, with and without attacks, and
            judged by classifiers and detectors. An adversarial prompt's image is made and judged
            again by the harness.""",
        "dataCollectionType": "Experiments",
        "dataCollectionMissingData": """An image that could not be judged is unscored and counts
            neither way. A cell that failed or was skipped says so.""",
        "dataAnnotationProtocol": """A prompt counts as erased only if its own image and all images of
            the attack show nothing of the concept to the judge.""",
        "dataUseCases": """Comparing methods that erase concepts, and attacks on them. Not a statement
            that a model is safe.""",
        "dataLimitations": """A rate rests on few prompts and has its 95 % Wilson interval beside it.
            Judges err. An attack that was not tried may succeed.""",
        "dataBiases": "Rates depend on the prompt sets, the judges and their thresholds.",
        "dataSocialImpact": """Adversarial prompts show how erased concepts are brought back. They are
            published so that defences can be tested.""",
        "personalSensitiveInformation": "Prompts of nudity, and adversarial ones, are included; no images."
        if nsfw
        else "None: prompts name objects, styles and stand-ins; there are no images.",
    }
    texts = {f"rai:{name}": " ".join(text.split()) for name, text in said.items()}
    return texts | {"rai:machineAnnotationTools": judges or ["not recorded"]}


def _distribution(name: str, data: bytes) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"{name}.csv",
        "name": f"{name}.csv",
        "contentUrl": f"{name}.csv",
        "encodingFormat": "text/csv",
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _record_set(name: str, fields: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "description": about,
                "dataType": kind,
                "source": {
                    "fileObject": {"@id": f"{name}.csv"},
                    "extract": {"column": column},
                },
            }
            for column, (kind, about) in fields.items()
        ],
    }


def _semantic(version: str) -> str:
    """Return a version of three numbers, which the format asks for."""
    numbers = [part for part in version.split(".") if part.isdecimal()]
    return ".".join([*numbers, "0", "0", "0"][:3])
