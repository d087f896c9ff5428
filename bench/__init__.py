"""Harness for benchmarking robust concept erasure: :func:`run`, :func:`evaluate`, and what plug-ins import.

Importing it loads neither torch nor diffusers nor pydantic.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.core.devices import double
from bench.core.digest import digest
from bench.core.errors import AssetError, BenchError, IncompatibleError, PluginError, SpecError
from bench.core.memory import Room
from bench.core.phrases import check_length, framed, sentences
from bench.core.protocols import (
    Adversarial,
    Attack,
    Attacker,
    Criterion,
    Evaluator,
    Guidance,
    ImageScorer,
    Method,
    Model,
    ParameterGroup,
    QueryModel,
    SetScorer,
    Target,
)
from bench.core.training import Batch, fit, fused, trainable
from bench.core.types import (
    Card,
    Concept,
    Context,
    Cost,
    Prompt,
    Sample,
    SamplerNoise,
    Score,
    Threat,
    World,
    by_kind,
    later,
)
from bench.sources.assets import Asset, content_digest
from bench.tasks.exclusion import may_mention_minors
from bench.tasks.promptsets import ADVERSARIAL, read_table

if TYPE_CHECKING:
    from bench.engine.api import Ref, Results, Spec, evaluate, run
    from bench.engine.checks import check
    from bench.report.results import load_results

__all__ = [
    "ADVERSARIAL",
    "Adversarial",
    "Asset",
    "AssetError",
    "Attack",
    "Attacker",
    "Batch",
    "BenchError",
    "Card",
    "Concept",
    "Context",
    "Cost",
    "Criterion",
    "Evaluator",
    "Guidance",
    "ImageScorer",
    "IncompatibleError",
    "Method",
    "Model",
    "ParameterGroup",
    "PluginError",
    "Prompt",
    "QueryModel",
    "Ref",
    "Results",
    "Room",
    "Sample",
    "SamplerNoise",
    "Score",
    "SetScorer",
    "Spec",
    "SpecError",
    "Target",
    "Threat",
    "World",
    "by_kind",
    "check",
    "check_length",
    "content_digest",
    "digest",
    "double",
    "evaluate",
    "fit",
    "framed",
    "fused",
    "later",
    "load_results",
    "may_mention_minors",
    "read_table",
    "run",
    "sentences",
    "trainable",
]

# OpenMP's threads wait for each other in a busy loop, by default for milliseconds. With another process on
# the same cores (a second run, a worker) the one that waits keeps the one that works off its core: a step
# of emoji-sd took ten times as long. So they sleep after a moment. The library reads this when torch loads
# it; it stands here because every entrance and every worker passes here first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Buffers of 2 MB and more in large pages, where Linux gives them on request; see devices.keep_memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_LATER = {
    **dict.fromkeys(("Ref", "Results", "Spec", "evaluate", "run"), "bench.engine.api"),
    "check": "bench.engine.checks",
    "load_results": "bench.report.results",
}


def __getattr__(name: str) -> Any:
    """Import what needs more than plug-ins do when it is asked for."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
