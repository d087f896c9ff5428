"""Harness for benchmarking robust concept erasure. Plug-ins import this facade and nothing else.

Importing it loads neither torch nor diffusers.
"""

from bench.errors import AssetError, BenchError, IncompatibleError, PluginError, SpecError
from bench.exclusion import may_mention_minors
from bench.phrases import check_length, sentences
from bench.promptsets import read_table
from bench.protocols import (
    Adversarial,
    Attack,
    Criterion,
    Evaluator,
    Guidance,
    Method,
    Model,
    ParameterGroup,
    QueryModel,
    SetScorer,
    Target,
)
from bench.training import fit, trainable
from bench.types import (
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

__all__ = [
    "Adversarial",
    "AssetError",
    "Attack",
    "BenchError",
    "Card",
    "Concept",
    "Context",
    "Cost",
    "Criterion",
    "Evaluator",
    "Guidance",
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
    "fit",
    "may_mention_minors",
    "read_table",
    "sentences",
    "trainable",
]
