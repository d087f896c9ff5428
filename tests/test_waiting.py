"""What an attack and a method may wait for: on a GPU each look at a value stops the queue of work.

A step runs on the device ``meta``, which has shapes and no values: whatever reads one raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import pytest
import torch
from fakes import finished
from torch.utils._python_dispatch import TorchDispatchMode

import attacks._token_search as search_module
from attacks._adam import Adam
from attacks._nearest import P4DSearch
from attacks._simplex import SimplexSearch, inverted, multinomial
from attacks._slot import Slot
from bench import Concept, Prompt, Target
from bench.models.neurons import concept_scores, neuron_layers, neuron_maps
from bench.models.schedule import Schedule
from bench.plugins.registry import Ref, resolved

CHURCH = Concept("church", "object")
PROMPT = Prompt("p0", "a photo of a castle", 7, 3.0)


class BlockingCopies(TorchDispatchMode):
    """Counts copies to another device that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            device = kwargs.get("device")
            moved = device is not None and torch.device(device) != args[0].device
            self.count += moved and not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


@contextmanager
def elsewhere(model) -> Iterator[None]:
    """Put a model's denoiser and text encoder where no values are."""
    model.pipe.unet.to("meta")
    model.pipe.text_encoder.to("meta")
    yield


def slot_of(search, prompt: Prompt, tokens: int) -> Slot:
    """Return a prompt's slot without making its image, for which values are needed."""
    latent = torch.zeros(search.model.latent_shape, device="meta")
    variable = torch.empty((tokens, *search.start(prompt, tokens).shape[1:]), device="meta")
    adam = Adam(variable, search.attack.lr, search.attack.weight_decay)
    slot = Slot(prompt, search.model.token_ids([prompt.text])[0], latent, variable, adam)
    slot.own["goals"] = torch.zeros((search.attack.steps, *latent.shape), device="meta")
    return slot


@pytest.mark.parametrize("name", ["unlearndiff", "p4d"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_waits_once_for_its_loss(tiny, ctx, monkeypatch, name: str, prediction: str) -> None:
    attack = finished("attacks", name, CHURCH, "photo", tokens=3, iterations=2)
    model = tiny.copy()
    model.schedule.prediction = prediction
    reads = []
    monkeypatch.setattr(
        search_module, "read_back", lambda values: (reads.append(values), [1.0] * len(values))[1]
    )
    with elsewhere(model):
        kind = SimplexSearch if name == "unlearndiff" else P4DSearch
        search = kind(attack, Target(model, model, CHURCH, lambda s: []), ctx)
        slots = [slot_of(search, PROMPT, 3), slot_of(search, Prompt("p1", "a castle", 8), 3)]
        for each in slots:
            search.restart(each)
        with BlockingCopies() as copies:
            search.step(slots)
    assert [tuple(values.shape) for values in reads] == [
        (3,)
    ]  # two losses, and whether all is finite
    assert copies.count == 0
    assert [each.losses for each in slots] == [[1.0], [1.0]]


def test_the_official_draw_does_wait(tiny, ctx) -> None:
    """The check above sees what it is for."""
    attack = finished("attacks", "unlearndiff", CHURCH, "photo", tokens=3, draw="official")
    model = tiny.copy()
    with elsewhere(model):
        search = SimplexSearch(attack, Target(model, model, CHURCH, lambda s: []), ctx)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            search.step([slot_of(search, PROMPT, 3)])


def test_levels_of_whole_timesteps_stay_where_they_are(tiny) -> None:
    schedule: Schedule = tiny.schedule
    whole, parts = torch.tensor([0, 3, 999]), torch.tensor([0.0, 3.0, 999.0])
    assert torch.equal(schedule.level(whole), schedule.level(parts))
    assert schedule.level(whole.to("meta")).device.type == "meta"


# ------------------------------------------------------------------ the draw
def streams(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def test_the_draw_on_a_device_is_the_inverse_of_the_cumulative_sum() -> None:
    rows = torch.rand(3, 4, 50)
    rows[rows < 0.5] = 0  # as projections leave them
    ids = inverted(rows, streams(3))
    for i, rng in enumerate(streams(3)):
        for k, u in enumerate(torch.rand(4, 1, generator=rng, dtype=torch.float64)[:, 0].tolist()):
            sums = list(accumulate(rows[i, k].double().tolist()))
            assert int(ids[i, k]) == next(n for n, s in enumerate(sums) if s >= (1 - u) * sums[-1])
    assert (rows.gather(-1, ids[..., None]) > 0).all()


@pytest.mark.parametrize("draw", [inverted, multinomial])
def test_draws_follow_the_probabilities(draw) -> None:
    """Both ways, against the binomial's own spread: 4 standard deviations in each of 6 places."""
    shares = torch.tensor([0.0, 0.5, 0.1, 0.0, 0.3, 0.1]) * 0.8  # rows need not sum to one
    n = 20_000
    ids = draw(shares.expand(1, n, 6).contiguous(), streams(1))[0]
    counts = torch.bincount(ids, minlength=6).double()
    p = shares.double() / shares.double().sum()
    assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()
    assert counts[0] == counts[3] == 0


def test_a_draw_depends_on_its_own_stream_only() -> None:
    rows = torch.rand(4, 3, 100)
    together = inverted(rows, streams(4))
    for i, rng in enumerate(streams(4)):
        assert torch.equal(inverted(rows[i : i + 1], [rng])[0], together[i])
    ones = torch.zeros(1, 2, 9)
    ones[..., 8] = 1.0
    assert inverted(ones, streams(1)).tolist() == [
        [8, 8]
    ]  # the last token is in reach, none after it


def test_photographs_draw_on_the_device_and_the_emoji_world_as_its_records() -> None:
    photo = resolved("attacks", Ref("unlearndiff"), CHURCH, "photo").params
    assert (photo["draw"], photo["judge_ids"]) == ("device", False)
    emoji = resolved("attacks", Ref("unlearndiff"), CHURCH, "emoji")
    assert not {"draw", "judge_ids"} & emoji.params.keys()  # its cells keep their names
    asked = resolved("attacks", Ref.parse("unlearndiff:draw=official,judge_ids=1"), CHURCH, "emoji")
    assert asked == emoji
    other = resolved("attacks", Ref.parse("unlearndiff:draw=device"), CHURCH, "emoji")
    assert other.params["draw"] == "device"
    assert other.identity != emoji.identity


# ------------------------------------------------------------------ neurons
def test_neurons_are_compared_call_by_call(tiny, ctx) -> None:
    """At most one call's maps of each model are held; the scores are those of all maps together."""
    erased = tiny.copy()
    with torch.no_grad():
        for weight in erased.parameters("full").values():
            weight.mul_(0.9)
    prompts = [PROMPT, Prompt("p1", "a castle", 8)]
    all_maps = [[maps for _, maps in neuron_maps(m, prompts)] for m in (tiny, erased)]
    got = concept_scores(tiny, erased, prompts)
    for name in neuron_layers(tiny):
        z = torch.stack([a[name] - b[name] for a, b in zip(*all_maps, strict=True)]).double()
        assert torch.allclose(got[name], z.mean((0, 1, 3, 4)), rtol=1e-12, atol=1e-15)
    assert torch.is_grad_enabled()
    assert iter(maps := neuron_maps(tiny, prompts)) is maps  # nobody has made them all
