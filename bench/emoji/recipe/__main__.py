"""Trains emoji-sd and its judges from nothing: ``python -m bench.emoji.recipe --help``."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from bench.emoji.judges import ARCHITECTURE
from bench.emoji.recipe import autoencoder, judges, text, unet
from bench.emoji.recipe.data import HELD_OUT, Scenes, render
from bench.emoji.recipe.pictures import Pictures, Studio, make
from bench.emoji.recipe.prompts import CONCEPTS
from bench.emoji.recipe.scenes import SIZE
from bench.emoji.world import BODY_PARTS, IMAGENETTE, OTHERS, Mix, Scene, caption
from bench.models.folders import save_folder
from bench.sources.catalog import file_digest

app = typer.Typer(add_completion=False)
COMMON = 0.6
"""Share of a denoiser's steps that all have in common: on scenes that show none of the tasks' concepts, so
what follows may leave out any of them."""
SOFTENED = 16_000
"""How many scenes the judges see softened, too."""
FEWEST_SCENES = HELD_OUT + 1000
_USUAL = 5000  # number of a chunk of scenes that no other stage reaches


@dataclass(frozen=True, slots=True)
class Steps:
    """How long each stage trains."""

    scenes: int = 60_000
    clip: int = 900
    decoder: int = 4000
    judge: int = 1300
    unet: int = 4200
    pictures: int = 1500


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Checkpoints, renderings and previews.")],
    out: Annotated[Path, typer.Option(help="Where the finished weights go.")],
    words: Annotated[
        Path | None, typer.Option(help="A pipeline whose tokenizer and text encoder are kept.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Also a denoiser that never learned this concept; may be repeated."),
    ] = None,
    scenes: Annotated[
        int,
        typer.Option(
            min=FEWEST_SCENES, help=f"Scenes to render; the last {HELD_OUT} are held out."
        ),
    ] = Steps().scenes,
    clip_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the text encoder.")
    ] = Steps().clip,
    decoder_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the decoder.")
    ] = Steps().decoder,
    judge_steps: Annotated[int, typer.Option(min=1, help="Steps of each judge.")] = Steps().judge,
    unet_steps: Annotated[int, typer.Option(min=1, help="Steps of each denoiser.")] = Steps().unet,
    pictures: Annotated[
        int,
        typer.Option(
            min=3,
            max=FEWEST_SCENES,
            help="Broken and other pictures of each material, for the judges.",
        ),
    ] = Steps().pictures,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Train every part in turn; a run that was stopped resumes from its checkpoints.

    Example: python -m bench.emoji.recipe --work /tmp/emoji --out bench/emoji/weights --without church
    """
    steps = Steps(scenes, clip_steps, decoder_steps, judge_steps, unet_steps, pictures)
    _check(work, out, words, without or [], steps)
    torch.set_num_threads(threads)
    figures: dict[str, float] = {}
    data = render(work, steps.scenes, workers=threads)
    print(f"scenes: {len(data.images)}, {data.train_size} for training", flush=True)

    tokenizer, encoder = _kept_words(words) if words else _text(data, work, steps, figures)
    vae, latents = _autoencoder(data, work, steps, figures)
    n = data.train_size
    captions = _captions(encoder, tokenizer, data.captions[:n], work / f"captions-{scenes}.pt")
    scaled = latents[:n] * vae.config.scaling_factor
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet.new_unet(),
        scheduler=unet.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    def denoiser(name: str, left_out: tuple[str, ...], from_step: int, to_step: int) -> None:
        keep = torch.from_numpy(~data.shows(*left_out)[:n]).nonzero().flatten()
        unet.train_unet(
            pipe.unet,
            scaled[keep],
            unet.Encodings(captions.table, captions.rows[keep]),
            work,
            to_step - from_step,
            lambda: preview(pipe, work / f"{name}.png"),
            name=name,
            decay=0.6 if to_step == steps.unet else 0,
        )

    common = round(COMMON * steps.unet)
    denoiser("unet-common", CONCEPTS, 0, common)
    start = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    never = dict[str, torch.nn.Module]()
    for concept in without or ():
        pipe.unet = never[concept] = unet.new_unet()
        pipe.unet.load_state_dict(start)
        plain = concept.replace(" ", "-")
        denoiser(f"unet-without-{plain}", (concept,), common, steps.unet)
        _save_denoiser(pipe.unet, out / "never-learned" / plain)
    pipe.unet = unet.new_unet()
    pipe.unet.load_state_dict(start)
    denoiser("unet", (), common, steps.unet)
    save(pipe, out / "model")
    if words is not None:  # keep them byte for byte
        for part in ("tokenizer", "text_encoder"):
            shutil.copytree(words / part, out / "model" / part, dirs_exist_ok=True)
    shown = _pictures(pipe, never, data, work, pictures)
    others = _pictures(pipe, never, data, work, pictures // 3, seed=12)
    some = min(len(latents), SOFTENED)
    soft = _kept(work / f"soft-{some}.pt", lambda: judges.soften(vae, latents[:some]))
    for question in judges.QUESTIONS:
        net = judges.train_judge(question, data, soft, work, steps.judge, shown)
        _save_judge(question, net, others, out / "judges" / question)
        if question == "subject":  # its reference shows what prompts do, not what trained it
            usual = render(work / "usual", HELD_OUT, workers=threads, first=_USUAL, mix=Mix())
            statistics = judges.reference_statistics(net, usual)
            save_file(statistics, out / "judges" / question / "reference.safetensors")
    (out / "training.json").write_text(
        json.dumps({"steps": asdict(steps), "figures": figures}, indent=1) + "\n"
    )
    write_digests(out)
    print(f"saved to {out}: {figures}", flush=True)


def _check(work: Path, out: Path, words: Path | None, without: list[str], steps: Steps) -> None:
    """Refuse what would fail or mislead after hours; note the sizes that ``work`` is for."""
    if words is not None and words.resolve() == (out / "model").resolve():
        raise typer.BadParameter("--out would write over --words: give another folder")
    if words is not None and not (words / "text_encoder").is_dir():
        raise typer.BadParameter(f"--words {words}: not a pipeline, it has no folder text_encoder")
    if unknown := [name for name in without if name not in CONCEPTS]:
        raise typer.BadParameter(f"--without {unknown[0]!r}: expected one of {', '.join(CONCEPTS)}")
    sizes, started = asdict(steps), work / "steps.json"
    if started.exists() and (before := json.loads(started.read_text())) != sizes:
        raise typer.BadParameter(
            f"--work {work} was begun with other sizes, {before}: give these, or another folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps(sizes) + "\n")


def halved(net: torch.nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors in half precision."""
    return {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in net.state_dict().items()
    }


def _save_denoiser(net: torch.nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(halved(net), folder / "diffusion_pytorch_model.safetensors")


def save(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Save a pipeline in half precision, and leave it in single precision.

    Half precision is for the files only: the text encoder's config decides what it is loaded as.
    """
    save_folder(pipe.to(torch.float16), folder)
    pipe.to(torch.float32)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))


def write_digests(folder: Path) -> None:
    """List the sha256 of every file of the model and the judges in ``digests.json``."""
    files = sorted(p for p in folder.glob("*/**/*") if p.is_file())
    listing = {p.relative_to(folder).as_posix(): file_digest(p) for p in files}
    (folder / "digests.json").write_text(json.dumps(listing, indent=1) + "\n")


def _kept_words(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", torch_dtype=torch.float32, attn_implementation="eager"
    )
    encoder.eval().requires_grad_(False)
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), encoder


def _text(
    data: Scenes, work: Path, steps: Steps, figures: dict[str, float]
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    folder = work / "tokenizer"
    if not folder.exists():
        text.train_tokenizer(data.captions).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    clip, figures["retrieval@1 of 256"] = text.train_clip(data, tokenizer, work, steps.clip)
    print(f"vocabulary {len(tokenizer)}, {figures}", flush=True)
    return tokenizer, _encoder(clip)


def _encoder(clip: CLIPModel) -> CLIPTextModel:
    encoder = CLIPTextModel(clip.config.text_config)
    source = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    ours = {k: source[k.removeprefix("text_model.")] for k in encoder.state_dict()}
    encoder.load_state_dict(ours)
    encoder.set_attn_implementation("eager")
    encoder.eval().requires_grad_(False)
    return encoder


def _autoencoder(
    data: Scenes, work: Path, steps: Steps, figures: dict[str, float]
) -> tuple[AutoencoderKL, Tensor]:
    torch.manual_seed(0)
    vae = autoencoder.pca_autoencoder(data.images[:6000])
    latents = autoencoder.encode(vae, data.images)
    n = data.train_size
    autoencoder.train_decoder(vae, data.images[:n], latents[:n], work, steps.decoder)
    psnr = autoencoder.psnr(vae, data.images[-1000:], latents[-1000:])
    figures["autoencoder PSNR, dB"] = float(psnr.mean())
    print(f"{figures}", flush=True)
    return vae, latents


def _captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[list[str]], path: Path
) -> unet.Encodings:
    if not path.exists():
        made = unet.encode_captions(encoder, tokenizer, captions)
        _write({"table": made.table, "rows": made.rows}, path)
    return unet.Encodings(**torch.load(path, weights_only=True, mmap=True))


def _pictures(
    pipe: StableDiffusionPipeline,
    never: dict[str, torch.nn.Module],
    data: Scenes,
    work: Path,
    n: int,
    seed: int = 11,
) -> Pictures:
    path = work / f"pictures-{seed}-{n}-{'-'.join(never)}.npz".replace(" ", "-")
    if not path.exists():
        first = Scenes(*(getattr(data, k)[:20_000] for k in Scenes.__slots__))
        made = make(Studio(pipe, bf16=True), never, first, n, seed)
        made.save(path.with_suffix(".tmp.npz"))
        path.with_suffix(".tmp.npz").replace(path)
    return Pictures.load(path)


def _save_judge(question: str, net: torch.nn.Module, others: Pictures, folder: Path) -> None:
    labels, exclusive = judges.QUESTIONS[question]
    threshold = judges.threshold(question, net, others)
    config = {
        "architecture": ARCHITECTURE,
        "labels": labels,
        "softmax": exclusive,
        "threshold": round(threshold, 3),
        "side": SIZE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(halved(net), folder / "model.safetensors")


def _kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """Return a tensor from disk, or make it and keep it there."""
    if not path.exists():
        _write(make(), path)
    kept: Tensor = torch.load(path, weights_only=True)
    return kept


def _write(what: object, path: Path) -> None:
    torch.save(what, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def preview(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Save an 8 x 8 grid of samples: six rows of photos, two rows of paintings."""
    rng = random.Random(0)
    names = [s.name for s in (*IMAGENETTE, *BODY_PARTS, *OTHERS)]
    rows = [(name, "photo") for name in names] + [(n, "photo") for n in names[:10]]
    rows = rows[:48] + [(n, "van gogh") for n in names[:12]] + [(n, "monet") for n in names[:4]]
    prompts = [
        caption(
            Scene((name,), rng.choice(["beach", "forest", "city", "snow"]), style),
            rng,
            wording="name",
        )
        for name, style in rows
    ]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    images = pipe(
        prompts, num_inference_steps=20, guidance_scale=5, generator=generators, output_type="np"
    ).images
    grid = images.reshape(8, 8, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray((grid.reshape(8 * SIZE, -1, 3) * 255).round().astype(np.uint8))
    picture.resize((1024, 1024), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    app()
