"""What every method, attack and judge keeps to; a new one is tested by being listed in its table.

The rules are those of ``bench check``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from networks import MAKERS
from safetensors.torch import save_file

import attacks
import evaluators
import methods
from attacks._token_attack import TokenAttack
from attacks.none import NoAttack
from attacks.submitted import Submitted
from attacks.transfer import Transfer
from bench.engine.attack import CellAttack
from bench.engine.checks import attacks as attack_checks
from bench.engine.checks import classes, lab
from bench.engine.checks import judges as judge_checks
from bench.engine.checks import methods as method_checks
from bench.engine.checks.attacks import Hunt, attack_twice, judged, victim_of
from bench.engine.checks.classes import Subject
from bench.engine.checks.judges import Verdicts, judge_twice
from bench.engine.checks.lab import Lab
from bench.engine.checks.methods import Erasure, erase_twice
from bench.errors import ContractError
from bench.models.diffusers import DiffusersModel
from bench.plugins.registry import Kind, Ref, load
from bench.tasks.tasks import load_task

PHOTO = {"safety-checker"}  # what is for photographs only
OF_ONE_MODEL = {"never-learned"}  # tests/test_never_learned.py
LABELS = {"emoji-style": "van gogh", "style": "van gogh", "style-clip": "van gogh"}
PROMPTS = load_task("church", "emoji").prompts[:3]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory) -> Lab:
    """A model of random weights, and a small file for every asset."""
    folder = tmp_path_factory.mktemp("assets")
    assets = {name: make(folder / name) for name, make in MAKERS.items()}
    return Lab(lab.random_model(), tmp_path_factory.mktemp("lab"), assets)


@pytest.fixture(scope="module")
def photo(emoji: Lab, tmp_path_factory) -> Lab:
    return Lab(lab.random_model("photo"), tmp_path_factory.mktemp("photo"), emoji.assets)


def quick(kind: Kind, name: str, folder: Path, base: DiffusersModel) -> Ref:
    """Return a plug-in that takes a moment, with the file that it cannot do without."""
    files: dict[str, Any] = {}
    if name == "external":
        files = {"unet": folder / "unet.safetensors"}
        save_file({k: 0.9 * v for k, v in base.pipe.unet.state_dict().items()}, files["unet"])
    if name in {"transfer", "submitted"}:
        files = {"source": folder / "found.csv"}
        rows = (f'{p.id},"lo {p.text}"\n' for p in PROMPTS)
        files["source"].write_text("id,adversarial\n" + "".join(rows))
    if name == "submitted":
        files["label"] = "mine"
    return lab.quick(kind, Ref(name, files))


# ---------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("rule", classes.RULES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [(family.__name__, n) for family in (methods, attacks, evaluators) for n in family.PLUGINS
     if n not in {"external", "transfer", "submitted"}],  # which are nothing without a file
)  # fmt: skip
def test_the_class(kind: Kind, name: str, rule: str) -> None:
    assert classes.RULES[rule](Subject(kind, Ref(name), "")) == ""


# ---------------------------------------------------------------------------- methods
@pytest.fixture(
    scope="module",
    params=[(n, t) for n in methods.PLUGINS if n not in OF_ONE_MODEL for t in method_checks.TASKS],
    ids="-".join,
)
def erasure(request, emoji, photo, tmp_path_factory) -> Erasure:
    name, task = request.param
    place = photo if name in PHOTO else emoji
    ref = quick("methods", name, tmp_path_factory.mktemp("files"), place.base)
    return erase_twice(ref, task, place)


@pytest.mark.parametrize("rule", method_checks.RULES)
def test_a_method(erasure: Erasure, rule: str) -> None:
    assert method_checks.RULES[rule](erasure) == ""


# ---------------------------------------------------------------------------- attacks
@pytest.fixture(scope="module")
def victim(emoji: Lab) -> DiffusersModel:
    return victim_of(emoji.base)


@pytest.fixture(scope="module", params=attacks.PLUGINS)
def hunt(request, emoji, victim, tmp_path_factory) -> Hunt:
    ref = quick("attacks", request.param, tmp_path_factory.mktemp("files"), emoji.base)
    return attack_twice(ref, victim, emoji)


@pytest.mark.parametrize("rule", attack_checks.RULES)
def test_an_attack(hunt: Hunt, rule: str) -> None:
    name = "none" if isinstance(hunt.attack, NoAttack) else ""
    assert attack_checks.rules(name)[rule](hunt) == ""


def test_an_attack_makes_as_many_images_as_it_says(hunt: Hunt) -> None:
    """On the prompt that never succeeds; images of ids, and those of the common setup, do not count."""
    says = getattr(hunt.attack, "most_images", None)
    if isinstance(hunt.attack, NoAttack | Submitted):
        assert says is None
        return
    if isinstance(hunt.attack, Transfer):  # it looks at no image: its own and the text's are judged
        assert (says(), {a.cost.images for a in hunt.found[0]}) == (2, {0})
        return
    (failed,) = (a for a in hunt.found[0] if a.prompt.id == PROMPTS[1].id)
    of_ids = 0
    if isinstance(hunt.attack, TokenAttack):
        # a text pass for each step, and one for each such image
        of_ids = failed.cost.text_forward - failed.trace["iterations"]
    assert failed.cost.images - of_ids == (says() if says else hunt.attack.draws + 1)


@pytest.mark.parametrize(
    "name", [n for n in attacks.PLUGINS if load("attacks", n).threat.access == "black"]
)
def test_a_black_box_attack_can_only_generate(name: str, emoji, victim, tmp_path) -> None:
    """The table above ran it with this handle: it needs no more."""
    work = lab.job(emoji, "church", attack=quick("attacks", name, tmp_path, emoji.base))
    one = CellAttack(work, victim, emoji.base, judged(PROMPTS), emoji.settings())
    handle = one.target.victim
    assert len(handle.generate(PROMPTS[:1])) == 1
    reads = ("pipe", "parameters", "encode", "copy", "predict_noise", "denoise", "notes")
    for read in reads:
        with pytest.raises(ContractError, match=f"may only generate .* it asked for {read!r}"):
            getattr(handle, read)
    assert one.asked == list(reads)


# ---------------------------------------------------------------------------- judges
@pytest.fixture(scope="module", params=evaluators.PLUGINS)
def verdicts(request, emoji) -> Verdicts:
    return judge_twice(Ref(request.param), LABELS.get(request.param, "church"), emoji)


@pytest.mark.parametrize("rule", judge_checks.RULES)
def test_a_judge(verdicts: Verdicts, rule: str) -> None:
    assert judge_checks.RULES[rule](verdicts) == ""
