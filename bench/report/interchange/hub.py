"""Hugging Face's evaluation results: a file for the benchmark's data set, and one for each model."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from bench.core.errors import SpecError
from bench.report.interchange.common import (
    ABOUT,
    PROJECT,
    Export,
    Measure,
    by_model,
    measured,
    not_measured,
    plug,
    slug,
)
from bench.report.tables import judged
from bench.store.metrics import Measurement, complement
from bench.store.record import Record

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def export(records: list[Record], now: float, dataset: str) -> Export:
    """Return ``eval.yaml`` for the data set and ``MODEL/.eval_results/erasure-bench.yaml`` for each model.

    Leaderboards there sort by one value, the highest first: of a target task that is the concept erasing
    rate, of others the accuracy or the CLIP score. Other measures are left out.
    """
    if not _REPOSITORY.fullmatch(dataset):
        raise SpecError(
            f"--dataset: expected OWNER/NAME of the benchmark's data set on the hub, got {dataset!r}"
        )
    left_out = list(not_measured(records))
    files: dict[str, Any] = {}
    tasks: dict[str, None] = {}
    for name, some in by_model(records).items():
        entries = []
        for r in some:
            for metric, m, about in measured(r):
                if about is None or (about.lower_is_better and metric != judged(r)):
                    left_out.append(
                        f"{r.cell.task}, {metric}: a leaderboard there shows the highest first"
                    )
                    continue
                task = slug(
                    f"{r.cell.world}-{r.cell.task}-{r.cell.attack.name}-{_shown(about, metric)}"
                )
                tasks[task] = None
                entries.append(_entry(r, metric, m, about, dataset, task, now))
        if entries:
            files[f"{name}/.eval_results/{PROJECT}.yaml"] = entries
    files["eval.yaml"] = {
        "name": PROJECT,
        "description": ABOUT,
        "evaluation_framework": PROJECT,
        "tasks": [{"id": task, "config": "default", "split": "test"} for task in tasks],
    }
    return Export(
        {path: _yaml(value) for path, value in files.items()}, tuple(dict.fromkeys(left_out))
    )


def _entry(
    r: Record, metric: str, m: Measurement, about: Measure, dataset: str, task: str, now: float
) -> dict[str, Any]:
    value = complement(m) if about.lower_is_better else m
    notes = [
        f"{_shown(about, metric)} of {plug(r.cell.method)} under attack {plug(r.cell.attack)}",
        f"N={m.n}",
    ]
    if value.low is not None and value.high is not None:
        notes.append(f"95 % interval {value.low:.4f} to {value.high:.4f}")
    if m.unscored:
        notes.append(f"{m.unscored} images could not be scored")
    notes.append(f"seed {r.cell.seed}, cell {r.cell.id}")
    return {
        "dataset": {"id": dataset, "task_id": task},
        "value": value.value,
        "date": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d"),
        "notes": "; ".join(notes),
    }


def _shown(about: Measure, metric: str) -> str:
    return "cer" if about.lower_is_better else metric


def _yaml(value: Any) -> bytes:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=False)).encode()
