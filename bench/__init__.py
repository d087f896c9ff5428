"""Harness for benchmarking robust concept erasure. Plug-ins import what they need from here.

Importing it loads neither torch nor diffusers.
"""

from bench.core.digest import digest
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
from bench.core.training import fit, trainable
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
)
from bench.errors import AssetError, BenchError, IncompatibleError, PluginError, SpecError
from bench.sources.assets import Asset, content_digest
from bench.tasks.exclusion import may_mention_minors
from bench.tasks.promptsets import ADVERSARIAL, read_table

__all__ = [
    "ADVERSARIAL",
    "Adversarial",
    "Asset",
    "AssetError",
    "Attack",
    "Attacker",
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
    "Sample",
    "SamplerNoise",
    "Score",
    "SetScorer",
    "SpecError",
    "Target",
    "Threat",
    "World",
    "by_kind",
    "check_length",
    "content_digest",
    "digest",
    "fit",
    "framed",
    "may_mention_minors",
    "read_table",
    "sentences",
    "trainable",
]
