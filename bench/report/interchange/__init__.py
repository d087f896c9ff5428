"""Records in the formats that others read. Nothing is rounded, and nothing is sent anywhere.

* eee: Every Eval Ever 0.3, a JSON file for each erased model and a line for each prompt (evalevalai.com)
* hf: Hugging Face's ``eval.yaml`` for the benchmark's data set, ``.eval_results`` for each model
* croissant: Croissant 1.0 with its RAI fields, describing two CSV files (mlcommons.org/croissant)
* errorbars: a CSV file for each task and attack, as the package errorbars reads them
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from bench.report.interchange import croissant, eee, errorbars, hub
from bench.report.interchange.common import Export
from bench.store.record import Record

Form = Literal["eee", "hf", "croissant", "errorbars"]
__all__ = ["Export", "Form", "exported"]


def exported(
    form: Form, records: Iterable[Record], *, dataset: str = "", now: float | None = None
) -> Export:
    """Return records as the files of a format.

    Args:
        form: Which format.
        records: Those that are exported; only what was measured can be.
        dataset: For "hf": ``owner/name`` of the data set that the benchmark has there.
        now: Seconds since 1970, where a format wants to know when it was written.

    Raises:
        SpecError: The data set is missing, or no name that the hub could have.
    """
    some, when = list(records), time.time() if now is None else now
    if form == "eee":
        return eee.export(some, when)
    if form == "hf":
        return hub.export(some, when, dataset)
    return croissant.export(some, when) if form == "croissant" else errorbars.export(some)
