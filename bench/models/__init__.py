"""Models by name, and what every method and attack needs from one."""

from bench.models.ablating import AcObjective, anchor_latents
from bench.models.checkpoints import load_part
from bench.models.clip import load_tokens, load_vision
from bench.models.diffusers import DiffusersModel
from bench.models.erasing import EsdObjective, esd_texts
from bench.models.loading import load_model
from bench.models.masks import SoftMasks, prune_smallest
from bench.models.neurons import concept_scores, neuron_maps, sensitivity, zero_neurons

__all__ = [
    "AcObjective",
    "DiffusersModel",
    "EsdObjective",
    "SoftMasks",
    "anchor_latents",
    "concept_scores",
    "esd_texts",
    "load_model",
    "load_part",
    "load_tokens",
    "load_vision",
    "neuron_maps",
    "prune_smallest",
    "sensitivity",
    "zero_neurons",
]
