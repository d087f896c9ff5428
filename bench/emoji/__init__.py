"""The emoji world: a real, tiny Stable Diffusion on captioned emoji scenes, and its judges."""

from bench.sources.catalog import EMOJI_WEIGHTS as WEIGHTS

PATH = WEIGHTS / "model"
"""Folder of emoji-sd; ``StableDiffusionPipeline.from_pretrained(PATH)`` loads it."""
JUDGES = WEIGHTS / "judges"
NEVER_LEARNED = WEIGHTS / "never-learned"
"""A folder per concept, with the denoiser that never saw it."""

__all__ = ["JUDGES", "NEVER_LEARNED", "PATH", "WEIGHTS"]
