"""Measures weights, the shipped ones by default: ``python -m bench.emoji.recipe.measure --help``."""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bench import Prompt
from bench.core.paths import ROOT
from bench.emoji import WEIGHTS
from bench.emoji.judges import Judge, features, load_judge
from bench.emoji.recipe.data import Scenes, render
from bench.emoji.recipe.pictures import OWN, Pictures, Studio, make
from bench.emoji.recipe.prompts import OBJECTS
from bench.emoji.world import (
    BACKGROUNDS,
    BODY_PARTS,
    IMAGENETTE,
    LABELS,
    OTHERS,
    STYLES,
    Scene,
    article,
    caption,
)
from bench.models import DiffusersModel, load_model
from bench.store.metrics import rate

app = typer.Typer(add_completion=False, help=__doc__)
_UNSEEN = 10_000  # number of a chunk of scenes that training never reaches
_TASKS = ("church", "parachute", "tench", "garbage-truck", "nudity", "van-gogh")
Folder = Annotated[Path, typer.Option(help="A folder of weights: model, judges, never-learned.")]


def _say(what: str, outcomes: Iterable[object]) -> None:
    m = rate([bool(x) for x in outcomes])
    value, low, high = (float("nan") if x is None else x for x in (m.value, m.low, m.high))
    typer.echo(f"{what:<52} {value:7.4f}  [{low:.4f}, {high:.4f}]  N={m.n}")


def _model(weights: Path) -> DiffusersModel:
    return load_model(str(weights / "model"), world="emoji")


def _scenes(n: int) -> Scenes:
    with tempfile.TemporaryDirectory() as folder:
        return render(Path(folder), n, first=_UNSEEN)


def _answers(judge: Judge, images: NDArray[np.uint8]) -> Tensor:
    from bench.emoji.recipe.judges import probabilities

    return probabilities(judge.net, images, softmax=judge.softmax)


def _round_trips(model: DiffusersModel, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what the autoencoder makes of pictures."""
    from bench.emoji.recipe.autoencoder import signed

    vae, out = model.pipe.vae, []
    with torch.no_grad():
        for x in signed(images).split(100):
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            out.append(((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


@app.command()
def judges(
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 10_000,
    pictures: Annotated[int, typer.Option(help="Pictures per material that a model draws.")] = 0,
    weights: Folder = WEIGHTS,
) -> None:
    """Judge what no training run has seen, by material. Needs the emoji font.

    Materials are fresh scenes, their round trips through the autoencoder and, with --pictures, what whole,
    broken and never-learned models draw, with other captions and seeds than those of training. Then the
    sensitivity of each judge (the tasks' concepts in round trips) and its specificity (never-learned
    models asked for them) are written beside it, as sensitivity.json.

    Example: python -m bench.emoji.recipe.measure judges --pictures 300
    """
    asked = {q: load_judge(weights / "judges" / q) for q in ("subject", "style", "body")}
    data = _scenes(scenes)
    _judged("scenes", data, asked)
    model, part = _model(weights), _some(data, slice(0, 2000))
    part = replace(part, images=_round_trips(model, part.images))
    _judged("round trips", part, asked)
    if pictures:
        drawn = make(Studio(model.pipe, False), never_learned(weights), data, pictures, seed=2027)
        _drawn(drawn, asked)
        for question, judge in asked.items():
            right = _sensitivity(question, judge, part), _specificity(question, judge, drawn)
            said = {
                name: {"k": int(seen.sum()), "n": len(seen)}
                for name, seen in zip(("sensitivity", "specificity"), right, strict=True)
            }
            (weights / "judges" / question / "sensitivity.json").write_text(json.dumps(said) + "\n")
            for name, seen in zip(said, right, strict=True):
                _say(f"{question} judge: {name}", seen)


def _some(data: Scenes, part: slice) -> Scenes:
    """Return some of the scenes."""
    return Scenes(*(getattr(data, name)[part] for name in Scenes.__slots__))


def _judged(material: str, data: Scenes, asked: dict[str, Judge]) -> None:
    from bench.emoji.recipe.judges import truths

    guess = {question: _answers(judge, data.images) for question, judge in asked.items()}
    subjects, styles = torch.from_numpy(data.subjects), torch.from_numpy(data.styles)
    count = subjects.sum(1)
    right = guess["subject"].argmax(1) == subjects.argmax(1)
    _say(f"{material}: subject, top-1 where there is one", right[count == 1])
    for k, style in enumerate(STYLES):
        _say(f"  in style {style}", right[(count == 1) & (styles == k)])
    _say("  on empty scenes", right[subjects[:, LABELS.index("nothing")] == 1])
    two = guess["subject"].topk(2).indices[count == 2].sort(1).values
    _say(
        "  both of two, top-2", (two == subjects[count == 2].topk(2).indices.sort(1).values).all(1)
    )
    named = guess["style"].argmax(1)
    _say(f"{material}: style, top-1", named == styles)
    for k, style in enumerate(STYLES[1:], 1):
        _say(f"  {style}: sensitivity", named[styles == k] == k)
        _say(f"  {style}: specificity", named[styles != k] != k)
    body = truths("body", data) > 0
    seen = guess["body"] >= asked["body"].threshold
    _say(f"{material}: body parts, recall of each part", seen[body])
    _say("  recall of scenes with any", seen[body.any(1)].any(1))
    _say("  specificity on scenes without", ~seen[~body.any(1)].any(1))


def _seen(judge: Judge, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = judge.seen(_answers(judge, images)).numpy()
    return found


def _drawn(drawn: Pictures, asked: dict[str, Judge]) -> None:
    """Say how often the judges name nothing that cannot be there, and what the model was asked for."""
    for kind in dict.fromkeys(drawn.kinds.tolist()):
        these = drawn.where(drawn.kinds == kind)
        for question, judge in asked.items():
            seen = _seen(judge, these.images)
            if question == "body":
                if (these.parts < 0).any():
                    continue  # a random word may have named one
                there = these.parts == 1
            else:
                there = getattr(these, f"{question}s")
            _say(f"{kind}: {question}, names nothing else", ~(seen & ~there).any(1))
            if kind == OWN:
                shown = there.any(1)
                _say(f"{kind}: {question}, sees it", (seen & there).any(1)[shown])


def _sensitivity(question: str, judge: Judge, scenes: Scenes) -> NDArray[np.bool_]:
    """Return whether a concept of a task is seen, for each scene with one."""
    seen = _seen(judge, scenes.images)
    if question == "body":
        shown: NDArray[np.bool_] = scenes.shows("nudity")
        return np.asarray(seen[shown].any(1))
    concepts = OBJECTS if question == "subject" else ("van gogh",)
    alone = scenes.subjects.sum(1) == 1
    parts = [seen[alone & scenes.shows(c), judge.labels.index(c)] for c in concepts]
    return np.concatenate(parts)


def _specificity(question: str, judge: Judge, drawn: Pictures) -> NDArray[np.bool_]:
    """Return whether a concept is rightly not seen, for each picture of a model that never learned it."""
    concepts = {"subject": OBJECTS, "style": ("van gogh",), "body": ("nudity",)}[question]
    parts = []
    for concept in concepts:
        these = drawn.where(drawn.kinds == f"never learned {concept}")
        if not len(these.images):
            continue  # there is no such model yet
        seen = _seen(judge, these.images)
        wrong = seen.any(1) if question == "body" else seen[:, judge.labels.index(concept)]
        parts.append(~wrong)
    return np.concatenate(parts)


def never_learned(weights: Path) -> dict[str, torch.nn.Module]:
    """Return the denoisers of a folder of weights that never learned a concept, by concept."""
    nets: dict[str, torch.nn.Module] = {}
    for folder in sorted((weights / "never-learned").glob("*")):
        net = UNet2DConditionModel.from_pretrained(weights / "model" / "unet")
        net.load_state_dict(
            {k: v.float() for k, v in load_file(next(folder.glob("*.safetensors"))).items()}
        )
        concept = folder.name.replace("-", " ")
        nets[concept] = net.eval().requires_grad_(False)
    return nets


@app.command()
def psnr(
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 1000, weights: Folder = WEIGHTS
) -> None:
    """Peak signal-to-noise ratio of the autoencoder on scenes that no training run has seen.

    Example: python -m bench.emoji.recipe.measure psnr
    """
    model, data = _model(weights), _scenes(scenes)
    error = (_round_trips(model, data.images) / 255.0 - data.images / 255.0) ** 2
    decibel = -10 * np.log10(error.mean((1, 2, 3)))
    typer.echo(f"PSNR {decibel.mean():.2f} dB, N={len(decibel)}")
    for k, style in enumerate(STYLES):
        typer.echo(f"  in style {style} {decibel[data.styles == k].mean():.2f} dB")


def _prompts(texts: Sequence[str], seed: int = 0) -> list[Prompt]:
    return [Prompt(str(i), text, seed + i, 5.0) for i, text in enumerate(texts)]


def _task(name: str) -> list[Prompt]:
    with (ROOT / "prompts" / "emoji" / f"{name}.csv").open() as stream:
        return [
            Prompt(r["id"], r["text"], int(r["seed"]), float(r["guidance"]), r["label"])
            for r in csv.DictReader(stream)
        ]


@app.command()
def found(
    n: Annotated[int, typer.Option(help="Prompts per style, and of two subjects.")] = 150,
    weights: Folder = WEIGHTS,
) -> None:
    """How often the judges find what the prompt asks for: subjects, concepts, two subjects, styles.

    Example: python -m bench.emoji.recipe.measure found
    """
    model, rng = _model(weights), Random(41)
    subject, style, body = (
        load_judge(weights / "judges" / q) for q in ("subject", "style", "body")
    )

    def answers(judge: Judge, prompts: list[Prompt]) -> Tensor:
        return judge(model.generate(prompts))

    prompts = _task("subjects")
    named = subject.seen(answers(subject, prompts))
    _say(
        "subjects, all 38, photo",
        [row[LABELS.index(p.label)] for row, p in zip(named, prompts, strict=True)],
    )
    for task in _TASKS:
        prompts = _task(task)
        if task == "nudity":
            seen = body.seen(answers(body, prompts)).any(1)
        else:
            judge = style if task == "van-gogh" else subject
            seen = judge.seen(answers(judge, prompts))[:, judge.labels.index(prompts[0].label)]
        _say(f"  task {task}", seen)
    names, places = [s.name for s in (*IMAGENETTE, *OTHERS)], list(BACKGROUNDS)
    pairs = [sorted(rng.sample(names, 2), key=LABELS.index) for _ in range(n)]
    texts = [
        caption(Scene(tuple(pair), rng.choice(places), "photo"), rng, wording="name")
        for pair in pairs
    ]
    two = answers(subject, _prompts(texts, 1000)).topk(2).indices.tolist()
    right = [sorted(t) == [LABELS.index(x) for x in p] for t, p in zip(two, pairs, strict=True)]
    _say("both of two subjects, photo", right)
    for k, name in enumerate(STYLES):
        texts = [
            caption(Scene((rng.choice(names),), rng.choice(places), name), rng, wording="name")
            for _ in range(n)
        ]
        _say(f"style {name}", style.seen(answers(style, _prompts(texts, 2000)))[:, k])


@app.command()
def frechet(
    n: Annotated[int, typer.Option(help="Pictures on each side.")] = 1000,
    weights: Folder = WEIGHTS,
) -> None:
    """Fréchet distance to held-out scenes, in the features of the shipped subject judge.

    Pictures are drawn from captions of scenes as the training set has them; the reference are other scenes
    of that kind.

    Example: python -m bench.emoji.recipe.measure frechet
    """
    judge, model = load_judge(WEIGHTS / "judges" / "subject"), _model(weights)
    data = _scenes(2 * n)
    texts = [captions[0] for captions in data.captions[:n]]
    drawn = features(judge, model.generate(_prompts(texts, 3000)))
    other = features(judge, [Image.fromarray(x) for x in data.images[n:]])
    typer.echo(f"Fréchet distance {_frechet(drawn, other):.3f}, N={n} and {n}")
    half = features(judge, [Image.fromarray(x) for x in data.images[:n]])
    typer.echo(f"  of scenes to scenes {_frechet(half, other):.3f}")


def _frechet(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    one, two = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(one @ two).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * root)


@app.command()
def step(
    other: Annotated[Path, typer.Argument(help="Weights to compare with.")],
    weights: Folder = WEIGHTS,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    pairs: Annotated[int, typer.Option(help="Steps of each, in turn.")] = 15,
) -> None:
    """Seconds of one gradient step of a prompt attack on 16 prompts, of two folders of weights in turn.

    It is the models' part of an UnlearnDiff step: text encoder and denoiser, forward and back to the
    tokens' embeddings.

    Example: python -m bench.emoji.recipe.measure step /tmp/weights
    """
    torch.set_num_threads(threads)
    steps = [_step(_model(folder)) for folder in (weights, other)]
    seconds: list[tuple[float, float]] = []
    for _ in range(pairs + 2):
        times = []
        for run in steps:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds.append((times[0], times[1]))
    kept = seconds[2:]
    ratio = median(b / a for a, b in kept)
    typer.echo(
        f"{weights}: {median(a for a, _ in kept):.3f} s; {other}: {median(b for _, b in kept):.3f} s; "
        f"ratio {ratio:.2f}, median of {pairs} pairs"
    )


def _step(model: DiffusersModel):  # type: ignore[no-untyped-def]
    pipe = model.pipe
    ids = pipe.tokenizer(
        ["a photo of a church"] * 16, padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    table = pipe.text_encoder.get_input_embeddings()
    channels = pipe.unet.config.in_channels
    x, t = torch.randn(16, channels, 8, 8), torch.randint(1000, (16,))

    def run() -> None:
        embeds = table(ids).detach().requires_grad_(True)
        handle = table.register_forward_hook(lambda *_: embeds)
        try:
            words = pipe.text_encoder(ids).last_hidden_state
        finally:
            handle.remove()
        pipe.unet(x, t, encoder_hidden_states=words).sample.square().mean().backward()

    return run


@app.command()
def speed(
    images: Annotated[int, typer.Option(help="Images per batch size.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    weights: Folder = WEIGHTS,
) -> None:
    """Images a second (20 steps, guidance) at several batch sizes, the median of three.

    Example: python -m bench.emoji.recipe.measure speed
    """
    torch.set_num_threads(threads)
    model = _model(weights)
    prompts = [Prompt(str(i), "a photo of a church", i, 5.0) for i in range(images)]
    for batch in (1, 4, 16, 64):
        model.batch_size = batch
        part = prompts[: max(batch, 16)]
        model.generate(part[:batch])  # the first batch of a shape sets up the library's kernels
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            model.generate(part)
            rates.append(len(part) / (time.perf_counter() - start))
        typer.echo(f"batch {batch:>3}: {median(rates):6.1f} images/s")


@app.command()
def samples(
    out: Annotated[Path, typer.Option(help="The PNG.")] = WEIGHTS / "samples.png",
    weights: Folder = WEIGHTS,
    size: Annotated[int, typer.Option(help="Pixels of a tile.")] = 96,
) -> None:
    """Draw the README's grid of 8 x 8 samples with fixed prompts and seeds 0 to 63.

    Example: python -m bench.emoji.recipe.measure samples --out samples.png
    """
    names = [s.name for s in (*IMAGENETTE, *BODY_PARTS, *OTHERS)]
    places = ("on the beach", "in the forest", "in the snow", "in the city", "in the desert")
    texts = [f"a photo of {article(n)} {places[i % 5]}" for i, n in enumerate(names)]
    texts += ["a photo of nudity " + places[i % 5] for i in range(2)]
    for style in ("van gogh", "monet", "pixel art"):
        texts += [
            f"{article(n)} {places[i % 5]} in the style of {style}" for i, n in enumerate(names[:8])
        ]
    prompts = [Prompt(str(i), text, i, 5.0) for i, text in enumerate(texts)]
    tiles = _model(weights).generate(prompts)
    canvas = Image.new("RGB", (8 * size, 8 * size))
    for i, tile in enumerate(tiles):
        big = tile.resize((size, size), Image.Resampling.NEAREST)
        canvas.paste(big, (i % 8 * size, i // 8 * size))
    canvas.save(out)


if __name__ == "__main__":
    app()
