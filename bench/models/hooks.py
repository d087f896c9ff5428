"""Reading what enters the layers of a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def inputs_of(
    layers: Mapping[str, nn.Module], read: Callable[[Tensor], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Give a dictionary that holds, by layer, what ``read`` returns for the layer's latest input."""
    seen: dict[str, Tensor] = {}

    def reader(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = read(inputs[0].detach())

        return hook

    hooks = [layer.register_forward_pre_hook(reader(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
