"""Models by name, and what every method and attack needs from one."""

from bench.models.diffusers import DiffusersModel
from bench.models.erasing import EsdObjective, esd_texts
from bench.models.loading import load_model
from bench.models.masks import SoftMasks

__all__ = ["DiffusersModel", "EsdObjective", "SoftMasks", "esd_texts", "load_model"]
