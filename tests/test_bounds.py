"""Parameters of attacks and judges: every number has bounds, beyond which it is refused in words."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import pytest
from test_methods import KINDS, numbers

from bench.core.types import ByKind, World
from bench.errors import ParamError
from bench.plugins.registry import Kind, Ref, create, load, names, resolved

NUMERIC = [
    pytest.param(family, name, field.name, kind, bounds, id=f"{name}:{field.name}")
    for family in ("attacks", "evaluators")
    for name in names(family)
    for cls in [load(family, name)]
    for field in fields(cls)
    for kind, bounds in numbers(get_type_hints(cls, include_extras=True)[field.name])
]


@pytest.mark.parametrize(("family", "name", "field", "kind", "bounds"), NUMERIC)
def test_every_number_has_bounds_and_nothing_beyond_them_is_taken(
    family: Kind, name: str, field: str, kind: type, bounds: dict[str, float]
) -> None:
    assert {"ge", "gt"} & set(bounds), "give the field a lower bound"
    step = 1 if kind is int else 1e-6
    outside = {"gt": 0, "lt": 0, "ge": -step, "le": step}
    below = [-1, -0.5] if max(bounds.get("ge", -1e9), bounds.get("gt", -1e9)) >= 0 else []
    beyond: list[object] = [*below, *(bound + outside[n] for n, bound in bounds.items())]
    beyond += ["nan", "inf", "-inf", "many", float("nan"), float("inf"), *([1.5] * (kind is int))]
    for value in beyond:
        for given in (value, str(value)):  # as a number, and as the command line has it
            with pytest.raises(ParamError, match=f"^{name}: {field}="):
                create(family, Ref(name, {field: given}))


@pytest.mark.parametrize("world", ["emoji", "photo"])
@pytest.mark.parametrize("name", [n for n in names("attacks") if n != "transfer"])
def test_an_attacks_defaults_leave_nothing_open(name: str, world: World) -> None:
    means_none = {"target_steps", "target_guidance", "rank"}  # "own", "none"
    for concept in KINDS:
        ref = resolved("attacks", Ref(name), concept, world)
        assert not [k for k, v in ref.params.items() if isinstance(v, ByKind | dict)]
        assert {k for k, v in ref.params.items() if v is None} <= means_none
        assert resolved("attacks", ref, concept, world).params == ref.params


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


@pytest.mark.parametrize("name", names("evaluators"))
def test_defaults_are_within_bounds(name: str) -> None:
    judge = create("evaluators", Ref(name))
    assert (
        create("evaluators", Ref(name, {f.name: getattr(judge, f.name) for f in fields(judge)}))
        == judge
    )


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
