"""The emoji world: a real, tiny Stable Diffusion on captioned emoji scenes, and its judges."""

from bench.sources.catalog import EMOJI_SECOND as SECOND
from bench.sources.catalog import EMOJI_WEIGHTS as WEIGHTS

PATH = WEIGHTS / "model"
"""Folder of emoji-sd; ``StableDiffusionPipeline.from_pretrained(PATH)`` loads it."""
JUDGES = WEIGHTS / "judges"

__all__ = ["JUDGES", "PATH", "SECOND", "WEIGHTS"]
