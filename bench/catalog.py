"""Models by name, for scripts; it lives in :mod:`bench.sources.catalog`."""

from bench.sources.catalog import EMOJI_WEIGHTS, HUB_FILES, MODELS

__all__ = ["EMOJI_WEIGHTS", "HUB_FILES", "MODELS"]
