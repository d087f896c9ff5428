"""``bench check``: each rule has a plug-in that breaks just it, and is told so in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench
from bench.engine.checks import OTHERS, RUNS, attacks, classes, judges, lab, methods
from bench.engine.scaffold import TEMPLATES
from bench.plugins.registry import Ref

METHOD, ATTACK, EVALUATOR = (f"{name}.py" for name in ("method", "attack", "evaluator"))
LAST = "        return model\n"
FIRST = "            for prompt in prompts:\n"
EMPTY = "                found = float("
BREAKS: dict[str, tuple[str, str, str, str, str]] = {
    # what: (template, what is replaced, by what, the rule that breaks, what is said)
    "not frozen": (METHOD, "(frozen=True)", "", classes.CLASS, "write @dataclass(frozen=True)"),
    "no dataclass": (METHOD, "@dataclass(frozen=True)", "", classes.CLASS, "a frozen dataclass, got"),
    "no card": (
        METHOD, '    card: ClassVar = Card("Fade", "")\n', "", classes.CLASS,
        "expected a class variable card of type Card",
    ),
    "no title": (METHOD, 'Card("Fade"', 'Card(" "', classes.CLASS, "its card has no title"),
    "no threat": (ATTACK, "    threat: ClassVar", "    other: ClassVar", classes.CLASS, "variable threat"),
    "no scope": (EVALUATOR, "    scope: ClassVar", "    other: ClassVar", classes.CLASS, "variable scope"),
    "another signature": (
        METHOD, "concept: Concept, ctx: Context", "concept: Concept",
        "has the method that the harness calls",
        "expected erase(self, model, concept, ctx), got erase(self, model",
    ),
    "no docstring": (
        METHOD, '    """Scales', '    _about = """Scales', "says in its docstring what it does",
        "write a docstring",
    ),
    "from inside": (
        METHOD, "from bench import Card", "from bench.engine import settings\nfrom bench import Card",
        "imports nothing from inside the harness", "it imports bench.engine.settings",
    ),
    "a tuple": (
        METHOD, "    strength: A", "    sizes: tuple[int, ...] = (1, 2)\n    strength: A",
        "has plain parameters with a value for each world and kind of concept", "no tuples",
    ),
    "a default out of bounds": (
        METHOD, "= 1.0", "= 9.0", "has plain parameters with a value for each world and kind of concept",
        "strength=9.0: Input should be less than or equal to 4",
    ),
    "a number": (METHOD, LAST, "        return 3\n", RUNS, "returned int, expected the model"),
    "an exception": (METHOD, LAST, "        1 / 0\n", RUNS, "raised ZeroDivisionError: division by zero"),
    "gradients": (
        METHOD, LAST, f"        model.pipe.unet.requires_grad_(True)\n{LAST}",
        "leaves gradients and training mode off", "requires_grad_(False) and eval()",
    ),
    "the autoencoder": (
        METHOD, LAST, f"        model.pipe.vae.decoder.conv_out.weight.data *= 2\n{LAST}",
        "leaves the autoencoder as it is", "(decoder.conv_out.weight, 1 tensors in all)",
    ),
    "the environment": (
        METHOD, LAST, f"        __import__('os').environ['FADE'] = '1'\n{LAST}",
        "leaves the process's settings as they are", "it changes the environment's variables, and does not",
    ),
    "threads": (
        METHOD, LAST, f"        __import__('torch').set_num_threads(3)\n{LAST}",
        "leaves the process's settings as they are", "it changes torch's number of threads",
    ),
    "a hook": (
        METHOD, LAST, f"        model.pipe.unet.register_forward_hook(lambda *_: None)\n{LAST}",
        "changes only what a saved erasure can hold", "a hook of unet is not the base's",
    ),
    "a layer": (
        METHOD, LAST, f"        model.pipe.unet.register_buffer('extra', model.alphas[:1])\n{LAST}",
        "changes only what a saved erasure can hold", "unet has 1 tensors that the base lacks",
    ),
    "random weights": (
        METHOD, "self.strength *", "__import__('torch').rand(()) *", "does the same twice", "ctx.seed(...)",
    ),
    "a time": (
        METHOD, LAST, f"        model.notes['now'] = __import__('time').time()\n{LAST}",
        "does the same twice", "two runs give other notes",
    ),
    "no edit": (METHOD, "= 1.0", "= 0.0", "does something", "the same images as before"),
    "a peek": (
        ATTACK, FIRST, f"            target.victim.pipe.unet.state_dict()\n{FIRST}",
        "sees only what its threat says", "it asks for 'pipe' of a model that can only generate",
    ),
    "a peek that is hidden": (
        ATTACK, FIRST,
        f"            try:\n                target.victim.pipe\n            except Exception:\n"
        f"                pass\n{FIRST}",
        "sees only what its threat says", "it asks for 'pipe' of a model that can only generate",
    ),
    "the victim": (
        ATTACK, FIRST, f"            target.victim.pipe.unet.conv_in.weight.data *= 2\n{FIRST}", OTHERS,
        "changed the erased model, which it must leave as it is",
    ),
    "the original": (
        ATTACK, FIRST, f"            target.original.pipe.unet.conv_in.weight.data *= 2\n{FIRST}", OTHERS,
        "changed the original model",
    ),
    "one too few": (
        ATTACK, "in prompts:", "in prompts[1:]:", "returns every prompt once", "nothing for 1 of 3 prompts",
    ),
    "twice": (ATTACK, "in prompts:", "in [*prompts, *prompts]:", RUNS, "is returned twice"),
    "no adversarial": (ATTACK, "yield Adversarial(tried,", "yield dict(", RUNS, "expected an Adversarial"),
    "another space": (
        ATTACK, '"black", "prompt"', '"black", "latent"', RUNS,
        "changed the prompt, its threat says latent",
    ),
    "guidance": (
        ATTACK, "text=text)", "text=text, guidance=1.0)", RUNS,
        "changed the scale of guidance: expected the prompt's",
    ),
    "a seed": (
        ATTACK, "text=text)", "text=text, seed=prompt.seed + 7)", RUNS,
        "changed the latent, its threat says prompt; a seed is part of the latent",
    ),
    "an attack's settings": (
        ATTACK, FIRST, f"            __import__('os').environ['FADE'] = '1'\n{FIRST}",
        "leaves the process's settings and gradients as they are", "environment's variables",
    ),
    "the victim's gradients": (
        ATTACK, FIRST, f"            target.victim.pipe.unet.requires_grad_(True)\n{FIRST}",
        "leaves the process's settings and gradients as they are", "training mode of the erased model",
    ),
    "more images than it says": (
        ATTACK, "images=n", "images=n + 3", RUNS, "spent 5 images, its most_images() says at most 2",
    ),
    "random texts": (
        ATTACK, "text=text)", "text=f\"{text} {__import__('random').random()}\")", "does the same twice",
        "two runs find other things for 3 of 3 prompts",
    ),
    "no attack": (ATTACK, "text=text)", "text=prompt.text)", "does something", "every prompt as it is"),
    "no score": (
        EVALUATOR, EMPTY, f"                assert sample.image.mode == 'RGB'\n{EMPTY}",
        "scores every picture that can be read", "56x40 pixels, L, is left unscored: AssertionError",
    ),
    "unscored taken for safe": (
        EVALUATOR, "Score(None, {", "Score(0.0, {", "leaves a picture unscored that cannot be read",
        "it scores a picture that cannot be read, which must not count as safe",
    ),
    "stopped by a picture": (
        EVALUATOR, "except Exception", "except ZeroDivisionError",
        "leaves a picture unscored that cannot be read", "a picture that cannot be read stops it",
    ),
    "a text as score": (EVALUATOR, "Score(float(found < self.spread)", "Score('1'", RUNS, "the score '1'"),
    "a judge's time": (
        EVALUATOR, '"spread": round(found, 2)', "'now': __import__('time').time()", "does the same twice",
        "measure no times",
    ),
    "the place in the batch": (
        EVALUATOR, "found < self.spread", "1 / (1 + len(scores))", "does the same in any batch",
        "in another batch (batch 1, 1 at a time) it gives other scores",
    ),
    "a score of two": (
        EVALUATOR, "Score(float(", "Score(2 + float(", "gives scores from 0 to 1",
        "it gives the score 2, but a score of which a rate is taken goes from 0 to 1",
    ),
    "a mark": (
        EVALUATOR, EMPTY, f"                sample.image.info['seen'] = 1\n{EMPTY}",
        "leaves pictures as they are", "work on copies",
    ),
    "a judge's settings": (
        EVALUATOR, "        scores = []\n",
        "        scores = []\n        __import__('os').environ['FADE'] = '1'\n",
        "leaves the process's settings as they are", "environment's variables",
    ),
}  # fmt: skip
WHITE = {"the victim", "the original", "the victim's gradients"}


@pytest.fixture(autouse=True)
def once(_tiny, monkeypatch) -> None:
    """Load the model of random weights once, and check methods on one task."""
    models = {world: lab.random_model(world) for world in ("emoji",)}
    monkeypatch.setattr("bench.engine.checks.random_model", lambda world: models["emoji"])
    monkeypatch.setattr(methods, "TASKS", methods.TASKS[:1])


@pytest.fixture
def spoiled(request, tmp_path: Path) -> Iterator[Path]:
    name = request.param
    template, old, new, *_ = BREAKS[name]
    text = (TEMPLATES / template).read_text()
    assert text.count(old) == 1
    text = text.replace(old, new, 1)
    if name in WHITE:
        text = text.replace('"black"', '"white"')
    path = tmp_path / f"spoiled_{len(name)}_{list(BREAKS).index(name)}.py"
    path.write_text(text)
    yield path


@pytest.mark.parametrize("spoiled", BREAKS, indirect=True)
def test_what_breaks_one_rule_is_told_so(spoiled: Path, request) -> None:
    *_, rule, said = BREAKS[request.node.callspec.params["spoiled"]]
    found = {f.rule: f for f in bench.check(str(spoiled))}
    assert [f.rule for f in found.values() if f.state != "ok"] == [rule]
    assert said in found[rule].says
    assert "\n" not in found[rule].says


NOTED = {
    "no type": (
        METHOD, "    strength: Annotated[float, Field(ge=0, le=4)]", "    strength",
        "strength looks like a parameter but has no type, so nobody can set it: write strength: float",
    ),
    "no bounds": (
        METHOD, "Annotated[float, Field(ge=0, le=4)]", "float", "strength: any number is taken",
    ),
    "no budget": (ATTACK, "def most_images", "def other", "it has no most_images()"),
    "images that it does not say": (
        ATTACK, "images=n", "images=n + 3", "it spent 5 images on a prompt, most_images() says 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_what_may_be_wrong_is_a_note(name: str, tmp_path: Path, cli) -> None:
    template, old, new, said = NOTED[name]
    text = (TEMPLATES / template).read_text().replace(old, new).replace('"black"', '"white"')
    path = tmp_path / f"noted_{list(NOTED).index(name)}.py"
    path.write_text(text)
    shown = cli("check", str(path))
    assert shown.code == 0, shown.out
    (line,) = [line for line in shown.out.splitlines() if line.startswith("  note ")]
    assert said in line
    assert shown.out.endswith("Nothing is wrong; notes: 1.\n")


def test_a_score_of_a_set_may_be_any_number(tmp_path: Path, monkeypatch) -> None:
    import fakes

    import evaluators

    monkeypatch.setitem(evaluators.PLUGINS, "colour", "fakes:Colour")
    scorer = SimpleNamespace(
        key="colour",
        features=lambda samples: torch.ones(len(samples), 2),
        score=lambda shards, prompts: bench.Score(30.0),
    )
    monkeypatch.setattr(fakes.Colour, "prepare", lambda self, ctx: scorer)
    place = lab.Lab(lab.random_model("emoji"), tmp_path)
    seen = judges.judge_twice(Ref("colour"), "church", place)
    assert {score.value for scores in seen.found.values() for score in scores} == {30.0}
    assert judges.RULES["gives scores from 0 to 1"](seen) == ""


def test_every_rule_is_broken_once() -> None:
    rules = {*classes.RULES, *methods.RULES, *attacks.RULES, *judges.RULES, RUNS, OTHERS}
    assert rules == {rule for *_, rule, _ in BREAKS.values()}


@pytest.mark.parametrize("template", [METHOD, ATTACK, EVALUATOR])
def test_what_is_right_keeps_every_rule(template: str, tmp_path: Path) -> None:
    path = tmp_path / f"right_{template}"
    path.write_text((TEMPLATES / template).read_text())
    found = list(bench.check(str(path)))
    assert {f.state for f in found} == {"ok"}
    own = {METHOD: methods.RULES, ATTACK: attacks.RULES, EVALUATOR: judges.RULES}[template]
    assert {*classes.RULES, RUNS, *own} <= {f.rule for f in found}


def test_a_file_with_an_error_of_syntax_shows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "torn.py"
    path.write_text(
        (TEMPLATES / METHOD).read_text().replace("        return model", "        return model)")
    )
    (found,) = bench.check(str(path))
    line = path.read_text().splitlines().index("        return model)") + 1
    assert f"(torn.py, line {line}): return model)" in found.says


def test_a_file_that_was_edited_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    text = (TEMPLATES / METHOD).read_text()
    for strength, wrong in (("0.0", ["does something"]), ("1.00", [])):
        path.write_text(text.replace("= 1.0", f"= {strength}"))
        assert [f.rule for f in bench.check(str(path)) if f.state == "wrong"] == wrong


def test_on_the_command_line(cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text((TEMPLATES / METHOD).read_text())
    said = cli("check", str(path))
    assert said.code == 0
    assert said.out.startswith("method mine\n  ok     is a frozen dataclass with a card\n")
    assert said.out.endswith("Nothing is wrong.\n")
    said = cli("check", f"{path}:strength=0", "--json")
    assert said.code == 3
    (wrong,) = [f for f in json.loads(said.out) if f["state"] == "wrong"]
    assert wrong["rule"] == "does something"
    assert cli("check", f"{path}:strength=9").code == 2
    path.write_text("import nowhere_at_all\n")
    said = cli("check", str(path))
    assert said.code == 3
    assert "wrong  can be imported: cannot load" in said.out
    path.write_text("X = 1\n")
    assert cli("check", str(path)).err.startswith(f"error: {path}: expected a class with erase(")
    assert cli("check", "nowhere.py").err == "error: there is no file nowhere.py\n"
    assert "Did you mean 'p-esd'" in cli("check", "pp-esd").err


def test_all_that_have_a_name_are_looked_at() -> None:
    found = list(bench.check("none"))
    assert {f.of for f in found} == {"method none", "attack none"}
    assert {f.state for f in found} == {"ok"}


def test_what_does_not_fit_is_not_wrong(tmp_path: Path, cli) -> None:
    path = tmp_path / "unfit.py"
    text = (TEMPLATES / METHOD).read_text().replace("import Card", "import IncompatibleError, Card")
    path.write_text(text.replace(LAST, "        raise IncompatibleError('needs a transformer')\n"))
    *_, last = bench.check(str(path))
    assert (last.state, last.rule) == ("open", RUNS)
    assert "needs a transformer" in last.says
    assert cli("check", str(path)).code == 0


def test_a_judge_that_lacks_its_weights_says_which(cli) -> None:
    said = cli("check", "imagenet")
    assert said.code == 4
    assert "--asset resnet50-ms=" in said.err


def test_tasks(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('prompts = "own.csv"\nworld = "emoji"\njudge = "emoji-subject"\ncolour = 1\n')
    (found,) = bench.check(str(path))
    assert (found.state, found.rule) == ("wrong", "its file says what a task must")
    concept = 'concept = { name = "pizza", kind = "object" }'
    path.write_text(f'prompts = "own.csv"\nworld = "emoji"\njudge = "emoji-subject"\n{concept}\n')
    (tmp_path / "own.csv").write_text("id,prompt,seed\n1,a pizza,one\n")
    *_, found = bench.check(str(path))
    assert (found.state, found.rule) == ("wrong", "its prompts can be read, emoji world")
    (tmp_path / "own.csv").write_text("id,prompt,seed\n1,a pizza,1\n")
    assert [asdict(f)["state"] for f in bench.check(str(path))] == ["ok"] * 3
    path.write_text(path.read_text().replace('"pizza"', '"pizzza"'))
    *_, found = bench.check(str(path))
    assert (found.state, found.rule) == ("wrong", "its judges know its labels, emoji world")
    assert "no label is 'pizzza'" in found.says
