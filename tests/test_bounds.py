"""Parameters of plug-ins: every number has bounds, beyond which it is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from bench.errors import ParamError
from bench.plugins.registry import KINDS, Kind, Ref, create, load, names

FREE = {("p-esd", "m0"), ("p-ac", "m0")}  # a logit: any finite number is one


def numbers(hint: Any, bounds: tuple[Any, ...] = ()) -> Iterator[tuple[type, dict[str, float]]]:
    """Yield each numeric type in a field's annotation with its bounds by name."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        found = [m for note in notes for m in getattr(note, "metadata", [note])]
        own = [(n, getattr(m, n)) for m in found for n in ("ge", "gt", "le", "lt") if hasattr(m, n)]
        yield from numbers(inner, (*bounds, *own))
    elif get_origin(hint) in {Union, UnionType}:
        for part in get_args(hint):
            yield from numbers(part, bounds)
    elif hint in {int, float}:
        yield hint, dict(bounds)


NUMERIC = [
    pytest.param(family, name, field.name, kind, bounds, id=f"{name}:{field.name}")
    for family in KINDS
    for name in names(family)
    for cls in [load(family, name)]
    for field in fields(cls)
    for kind, bounds in numbers(get_type_hints(cls, include_extras=True)[field.name])
]


@pytest.mark.parametrize(("family", "name", "field", "kind", "bounds"), NUMERIC)
def test_every_number_has_bounds_and_nothing_beyond_them_is_taken(
    family: Kind, name: str, field: str, kind: type, bounds: dict[str, float]
) -> None:
    beyond: list[object] = ["nan", "inf", "-inf", "many", float("nan"), float("inf")]
    if (name, field) not in FREE:
        assert {"ge", "gt"} & set(bounds), "give the field a lower bound, or list it as free"
        step = 1 if kind is int else 1e-6
        outside = {"gt": 0, "lt": 0, "ge": -step, "le": step}
        beyond += [-1e9, *(bound + outside[n] for n, bound in bounds.items())]
    if kind is int:
        beyond += [1.5, "2.5"]
    for value in beyond:
        for given in (value, str(value)):  # as a number, and as the command line has it
            with pytest.raises(ParamError, match=f"^{name}: {field}="):
                create(family, Ref(name, {field: given}))


@pytest.mark.parametrize(
    "method",
    [
        "esd:steps=-5", "esd:batch=0", "esd:reuse=0", "esd:sampling_steps=2000", "esd:eta=-1",
        "p-esd:threshold=5", "p-esd:gamma=0", "p-esd:lr=nan", "ac:images=0", "ac:clip=0", "p-ac:eps=0",
        "uce:lamb=-1", "uce:erase_scale=0", "uce:preserve_scale=-1", "fmn:inversion_steps=-1",
        "concept-prune:ratio=2", "concept-prune:calls=51", "concept-prune:calls=5,steps=3",
        "np-esd:top=0", "pre-prune:share=1", "post-prune:share=-0.1", "sld:preset=none",
    ],
)  # fmt: skip
def test_a_plan_refuses_a_method_out_of_range(cli, method: str) -> None:
    task = "nudity" if method == "concept-prune:calls=51" else "church"
    said = cli("plan", "--method", method, "--attack", "none", "--task", task)
    name, _, params = method.partition(":")
    assert said.code == 2, said.out
    assert said.err.startswith(f"error: {name}: ")
    assert params.split("=")[0].split(",")[0] in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "attack",
    [
        "unlearndiff:tokens=0", "unlearndiff:tokens=500", "unlearndiff:tokens=31", "unlearndiff:lr=nan",
        "unlearndiff:iterations=-1", "unlearndiff:phase=90", "unlearndiff:timesteps=official,phase=20",
        "unlearndiff:target_steps=0", "unlearndiff:insertion=replace", "p4d:weight_decay=-1",
        "p4d:tokens=500", "p4d-official:check=501", "p4d-official:tokens=500", "p4d-official:lr=inf",
        "random:tokens=500", "random:draws=0", "seed-search:draws=-3", "ring-a-bell:population=1",
        "ring-a-bell:length=31", "ring-a-bell:crossover=2", "mma:length=500", "mma:top_k=0",
        "cce:batch=0", "mask-revival:keep=0", "mask-revival:rank=0", "relearn:lr=0", "transfer",
        "transfer:source=nowhere.json", "noise-probe:scales=none",
    ],
)  # fmt: skip
def test_a_plan_refuses_an_attack_out_of_range(cli, attack: str) -> None:
    said = cli("plan", "--method", "none", "--attack", attack, "--task", "church")
    assert said.code == 2, said.err
    assert said.err.startswith(f"error: {attack.partition(':')[0]}") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("nudenet:threshold=0.1", "greater than or equal to 0.25"),
        ("nudenet:threshold=nan", "threshold=nan"),
        ("nudenet:profile=unlearndifatk", "Did you mean 'unlearndiffatk'?"),
        ("nudenet:weights=nudenet-best.onnx", "Did you mean 'nudenet-best'?"),
        ("imagenet:top_k=0", "top_k=0: Input should be greater than or equal to 1"),
        ("imagenet:top_k=1001", "less than or equal to 1000"),
        ("emoji-body:threshold=1.5", "less than 1"),
        ("emoji-body:treshold=0.5", "no parameter treshold"),
        ("nudnet", "Did you mean 'nudenet'?"),
    ],
)  # fmt: skip
def test_a_plan_refuses_a_judge_out_of_range(cli, judge: str, message: str) -> None:
    said = cli("plan", "--method", "none", "--attack", "none", "--task", "church", "--judge", judge)
    assert said.code == 2, said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message in said.err
