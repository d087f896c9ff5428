"""One prompt under attack: what the search knows of it, and how that is kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attacks._adam import Adam
from attacks._resume import State
from bench import Cost, Prompt

_VALUES = ("ids", "round", "losses", "found", "text", "token_success", "success", "done", "best")


@dataclass
class Slot:
    """One prompt under attack.

    Args:
        prompt: The prompt.
        ids: Its token ids.
        latent: What is noised, ``(c, h, w)``.
        variable: What stands for the free tokens, one row per free token.
        adam: The optimiser's state.
        own: What else the attack keeps of this prompt.
        rng: The prompt's random stream.
        cost: What was spent; at first the prompt's own image.
        losses: The loss of each step.
        round: Rounds that are complete.
        found: The free tokens that the variable stood for at the end of the latest round.
        text: The prompt with these tokens, as a string.
        success: Whether the judge found the concept in that string's image.
        token_success: Whether it found the concept in an image of the ids themselves, in any round.
        best: The best round so far, where an attack compares rounds.
        done: Whether the search has ended.
    """

    prompt: Prompt
    ids: list[int]
    latent: Tensor
    variable: Tensor
    adam: Adam
    own: dict[str, Tensor] = field(default_factory=dict)
    rng: torch.Generator = field(default_factory=torch.Generator)
    cost: Cost = field(default_factory=lambda: Cost(images=1))
    losses: list[float] = field(default_factory=list)
    round: int = 0
    found: list[int] = field(default_factory=list)
    text: str = ""
    success: bool = False
    token_success: bool = False
    best: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    @property
    def trial(self) -> Prompt:
        """The prompt with the string of the latest round."""
        return replace(self.prompt, text=self.text)

    def snapshot(self) -> Callable[[], None]:
        """Return a function that takes back a step of the optimiser and its draws."""
        adam, variable, stream = copy(self.adam), self.variable, self.rng.get_state()

        def restore() -> None:
            self.adam, self.variable = adam, variable
            self.rng.set_state(stream)

        return restore

    def state(self) -> State:
        """Return the slot as it is kept on disk."""
        adam = asdict(self.adam)
        tensors = {"latent": self.latent, "variable": self.variable, "rng": self.rng.get_state()}
        tensors |= {"m": self.adam.m, "v": self.adam.v}
        values = {name: getattr(self, name) for name in _VALUES}
        values |= {"prompt": asdict(self.prompt), "cost": asdict(self.cost), "adam": adam}
        return State(len(self.losses), values, tensors | self.own, self.done)

    @classmethod
    def of(cls, state: State, device: torch.device) -> Slot:
        """Return the slot that was kept."""
        own = {name: t if name == "rng" else t.to(device) for name, t in state.tensors.items()}
        latent, variable, m, v = (own.pop(name) for name in ("latent", "variable", "m", "v"))
        stream = own.pop("rng")
        values = {name: state.values[name] for name in _VALUES}
        adam = Adam(variable, **state.values["adam"])
        adam.m, adam.v = m, v
        slot = cls(
            Prompt(**state.values["prompt"]),
            latent=latent,
            variable=variable,
            adam=adam,
            own=own,
            cost=Cost(**state.values["cost"]),
            **values,
        )
        slot.rng.set_state(stream)
        return slot
