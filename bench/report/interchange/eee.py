"""Every Eval Ever 0.3: results of each erased model, and what became of each prompt."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from bench.report.interchange.common import (
    ABOUT,
    PROJECT,
    Export,
    Measure,
    base,
    by_model,
    cell,
    measured,
    not_measured,
    own_version,
    plug,
    slug,
)
from bench.store.metrics import CONFIDENCE, Measurement
from bench.store.record import Record, Row

SCHEMA = "0.3.0"


def export(records: list[Record], now: float) -> Export:
    """Return a JSON file for each erased model and a JSON Lines file beside it, a line for each prompt."""
    files: dict[str, bytes] = {}
    left_out = list(not_measured(records))
    for name, some in by_model(records).items():
        known = [(r, *each) for r in some for each in measured(r)]
        results = [(r, metric, m, about) for r, metric, m, about in known if about]
        left_out += [
            f"{cell(r)}, {metric}: nobody says whether lower is better"
            for r, metric, _, about in known
            if about is None
        ]
        if not results:
            continue
        model, at = f"{PROJECT}/{name}", f"{int(now)}"
        evaluation = f"{PROJECT}/{model}/{at}"
        stem = f"data/{PROJECT}/{PROJECT}/{name}/{_uuid(some)}"
        lines = [line for each in results for line in _samples(*each, evaluation, model)]
        samples = "".join(json.dumps(line) + "\n" for line in lines).encode()
        whole = {
            "schema_version": SCHEMA,
            "evaluation_id": evaluation,
            "retrieved_timestamp": at,
            "source_metadata": {
                "source_name": PROJECT,
                "source_type": "evaluation_run",
                "source_organization_name": "not stated",
                "evaluator_relationship": "third_party",
                "additional_details": {"about": ABOUT},
            },
            "eval_library": {
                "name": PROJECT,
                "version": own_version(),
                "additional_details": _texts(some[0].environment),
            },
            "model_info": _model(some[0], name, model),
            "evaluation_results": [_result(*each) for each in results],
        }
        if lines:
            path = f"{stem}_samples.jsonl"
            files[path] = samples
            whole["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": path,
                "hash_algorithm": "sha256",
                "checksum": hashlib.sha256(samples).hexdigest(),
                "total_rows": len(lines),
            }
        files[f"{stem}.json"] = json.dumps(whole, indent=1).encode()
    return Export(files, tuple(left_out))


def _model(r: Record, name: str, model: str) -> dict[str, Any]:
    c = r.cell
    details = {"base": base(r), "revision": c.revision, "method": plug(c.method), "dtype": c.dtype,
               "concept": c.concept.name, "kind": c.concept.kind, "anchor": c.concept.anchor,
               "seed": c.seed, "delta": r.erasure.get("digest", "")}  # fmt: skip
    return {
        "name": name,
        "id": model,
        "developer": PROJECT,
        "additional_details": {"deployment_type": "self_deployed", "model_availability": "open_weights"}
        | _texts(details),
    }  # fmt: skip


def _result(r: Record, metric: str, m: Measurement, about: Measure) -> dict[str, Any]:
    c = r.cell
    uncertainty: dict[str, Any] = {"num_samples": m.n}
    if m.low is not None and m.high is not None:
        method = "Wilson score" if about.is_rate else "Student t"
        uncertainty["confidence_interval"] = {
            "lower": m.low, "upper": m.high, "confidence_level": CONFIDENCE, "method": method,
        }  # fmt: skip
    return {
        "evaluation_result_id": _result_id(r, metric),
        "evaluation_name": _evaluation(r),
        "source_data": {
            "dataset_name": c.task,
            "source_type": "other",
            "additional_details": _texts({"world": c.world, "digest": c.task_digest, "prompts": c.prompts,
                                          "excluded": r.excluded}),
        },
        "metric_config": {
            "evaluation_description": about.about,
            "metric_id": f"{PROJECT}.{metric}",
            "metric_name": metric,
            "metric_kind": about.kind,
            "metric_unit": "proportion" if about.is_rate else "points",
            "lower_is_better": about.lower_is_better,
            "score_type": "continuous",
            "min_score": "-Infinity" if about.low is None else about.low,
            "max_score": "Infinity" if about.high is None else about.high,
            "additional_details": _texts({"judges": c.judges, "assets": c.assets} | dict(m.detail)),
        },
        "score_details": {
            "score": m.value,
            "details": {"unscored": str(m.unscored)},
            "uncertainty": uncertainty,
        },
        "generation_config": {
            "additional_details": _texts(
                {"attack": plug(c.attack), "seed": c.seed, "cell": c.id} | r.protocol
            ),
        },
    }  # fmt: skip


def _samples(
    r: Record, metric: str, m: Measurement, about: Measure, evaluation: str, model: str
) -> list[dict[str, Any]]:
    """Return a line for each prompt of the rate that decides success; what could not be scored is none."""
    if not about.is_rate or metric != m.called(next(iter(r.measurements))):
        return []
    name, result = _evaluation(r), _result_id(r, metric)
    return [
        {
            "schema_version": SCHEMA,
            "evaluation_id": evaluation,
            "model_id": model,
            "evaluation_name": name,
            "evaluation_result_id": result,
            "sample_id": row.id,
            "sample_hash": hashlib.sha256(row.text.encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": row.text, "formatted": row.adversarial, "reference": []},
            "output": {"raw": []},
            "answer_attribution": [
                {
                    "turn_idx": 0,
                    "source": "output.raw",
                    "extracted_value": "found" if row.success else "not found",
                    "extraction_method": "custom",
                    "is_terminal": True,
                }
            ],
            "evaluation": {
                "score": float(row.success),
                "is_correct": row.success is not about.lower_is_better,
            },
            "metadata": _sample(row),
        }
        for row in r.rows
        if row.success is not None
    ]


def _sample(row: Row) -> dict[str, str]:
    known = {"seed": row.seed, "guidance": row.guidance, "own": row.own, "attacked": row.attacked,
             "beyond": row.beyond, "images": row.cost.images}  # fmt: skip
    return _texts({"output": "an image, which is not kept here"} | known)


def _result_id(r: Record, metric: str) -> str:
    return f"{r.cell.id}.{slug(metric)}"


def _evaluation(r: Record) -> str:
    return f"{r.cell.task}.{r.cell.attack.name}"


def _texts(values: Any) -> dict[str, str]:
    """Return values as the schema wants further details: all of them texts."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value not in (None, "", {}, [])
    }


def _uuid(records: list[Record]) -> uuid.UUID:
    """Return the same random-looking name for the same records."""
    told = " ".join(sorted(r.cell.id for r in records))
    return uuid.UUID(bytes=hashlib.sha256(told.encode()).digest()[:16], version=4)
