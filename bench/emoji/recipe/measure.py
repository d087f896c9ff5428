"""Measures the shipped weights: ``python -m bench.emoji.recipe.measure judges | speed | samples``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from PIL import Image

from bench.core.types import Prompt
from bench.emoji import JUDGES, WEIGHTS
from bench.emoji.judges import load_judge
from bench.emoji.world import BODY_PARTS, IMAGENETTE, LABELS, OTHERS, article
from bench.models import load_model
from bench.store.metrics import rate

app = typer.Typer(add_completion=False, help=__doc__)
_UNSEEN = 10_000  # number of a chunk of scenes that training never reaches


def _say(what: str, outcomes: torch.Tensor) -> None:
    m = rate([bool(x) for x in outcomes.tolist()])
    typer.echo(f"{what:<44} {m.value:7.4f}  [{m.low:.4f}, {m.high:.4f}]  N={m.n}")


@app.command()
def judges(scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 10_000) -> None:
    """Judge freshly rendered scenes that no training run has seen. Needs the emoji font.

    Example: python -m bench.emoji.recipe.measure judges
    """
    from bench.emoji.recipe.data import render
    from bench.emoji.recipe.judges import probabilities, truths

    with tempfile.TemporaryDirectory() as folder:
        data = render(Path(folder), scenes, first=_UNSEEN)
    guess = {}
    for question in ("subject", "style", "body"):
        judge = load_judge(JUDGES / question)
        guess[question] = probabilities(judge.net, data.images, softmax=judge.softmax)
    subjects = torch.from_numpy(data.subjects)
    single = subjects.sum(1) == 1
    right = guess["subject"].argmax(1) == subjects.argmax(1)
    _say("subject, top-1 on scenes with one", right[single])
    for k, style in enumerate(("photo", "van gogh", "monet", "pixel art")):
        _say(f"  in style {style}", right[single & torch.from_numpy(data.styles == k)])
    empty = subjects[:, LABELS.index("nothing")] == 1
    _say("  on empty scenes", right[empty])
    _say("style, top-1", guess["style"].argmax(1) == torch.from_numpy(data.styles))
    body = truths("body", data) > 0
    seen = guess["body"] >= load_judge(JUDGES / "body").threshold
    _say("body parts, recall of each part", seen[body])
    _say("body parts, recall of scenes with any", seen[body.any(1)].any(1))
    _say("body parts, false alarms on scenes without", seen[~body.any(1)].any(1))


@app.command()
def speed(
    images: Annotated[int, typer.Option(help="Images per batch size.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Images a second (32 px, 20 steps, guidance) at several batch sizes, the median of three.

    Example: python -m bench.emoji.recipe.measure speed
    """
    torch.set_num_threads(threads)
    model = load_model("emoji-sd")
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
    tiles = load_model("emoji-sd").generate(prompts)
    canvas = Image.new("RGB", (8 * size, 8 * size))
    for i, tile in enumerate(tiles):
        big = tile.resize((size, size), Image.Resampling.NEAREST)
        canvas.paste(big, (i % 8 * size, i // 8 * size))
    canvas.save(out)


if __name__ == "__main__":
    app()
