"""Trains emoji-sd and its judges from nothing: ``python -m bench.emoji.recipe --help``."""

from __future__ import annotations

import json
import random
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
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from bench.emoji.judges import ARCHITECTURE
from bench.emoji.recipe import autoencoder, judges, text, unet
from bench.emoji.recipe.data import Scenes, render
from bench.emoji.world import BODY_PARTS, IMAGENETTE, OTHERS, Scene, caption
from bench.models.folders import save_pipeline
from bench.sources.catalog import file_digest

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Steps:
    """How long each stage trains."""

    scenes: int = 60_000
    clip: int = 900
    decoder: int = 1200
    judge: int = 1300
    unet: int = 2600


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Checkpoints, renderings and previews.")],
    out: Annotated[Path, typer.Option(help="Where the finished weights go.")],
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = Steps().scenes,
    clip_steps: Annotated[int, typer.Option(help="Steps of the text encoder.")] = Steps().clip,
    decoder_steps: Annotated[int, typer.Option(help="Steps of the decoder.")] = Steps().decoder,
    judge_steps: Annotated[int, typer.Option(help="Steps of each judge.")] = Steps().judge,
    unet_steps: Annotated[int, typer.Option(help="Steps of the denoiser.")] = Steps().unet,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train every part in turn; a run that was stopped resumes from its checkpoints.

    Example: python -m bench.emoji.recipe --work /tmp/emoji --out bench/emoji/weights
    """
    torch.set_num_threads(threads)
    steps = Steps(scenes, clip_steps, decoder_steps, judge_steps, unet_steps)
    work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    data = render(work, steps.scenes, workers=threads)
    print(f"scenes: {len(data.images)}, {data.train_size} for training", flush=True)

    tokenizer, clip = _text(data, work, steps, figures)
    encoder = CLIPTextModel(clip.config.text_config)
    source = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    ours = {k: source[k.removeprefix("text_model.")] for k in encoder.state_dict()}
    encoder.load_state_dict(ours)
    encoder.set_attn_implementation("eager")
    encoder.eval().requires_grad_(False)

    vae, latents = _autoencoder(data, work, steps, figures)
    soft = _kept(work / f"soft-{scenes}.pt", lambda: judges.soften(vae, latents))
    for question, (labels, exclusive) in judges.QUESTIONS.items():
        net = judges.train_judge(question, data, soft, work, steps.judge)
        threshold = 0.5 if exclusive else judges.body_threshold(net, data)
        config = {
            "architecture": ARCHITECTURE,
            "labels": labels,
            "softmax": exclusive,
            "threshold": round(threshold, 3),
        }
        folder = out / "judges" / question
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        half = {
            k: v.half().contiguous() if v.is_floating_point() else v
            for k, v in net.state_dict().items()
        }
        save_file(half, folder / "model.safetensors")
        if question == "subject":
            save_file(judges.reference_statistics(net, data), folder / "reference.safetensors")

    net = unet.new_unet()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=net,
        scheduler=unet.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    n = data.train_size
    unet.train_unet(
        net,
        latents[:n] * vae.config.scaling_factor,
        data.captions[:n],
        encoder,
        tokenizer,
        work,
        steps.unet,
        lambda: preview(pipe, work / "samples.png"),
    )
    save_pipeline(pipe.to(torch.float16), out / "model")
    # Half precision is for the files only: the text encoder's config decides what it is loaded as.
    encoder_config = out / "model" / "text_encoder" / "config.json"
    encoder_config.write_text(encoder_config.read_text().replace('"float16"', '"float32"'))
    (out / "training.json").write_text(
        json.dumps({"steps": asdict(steps), "figures": figures}, indent=1) + "\n"
    )
    write_digests(out)
    print(f"saved to {out}: {figures}", flush=True)


def write_digests(folder: Path) -> None:
    """List the sha256 of every file of the model and the judges in ``digests.json``."""
    files = sorted(p for p in folder.glob("*/**/*") if p.is_file())
    listing = {p.relative_to(folder).as_posix(): file_digest(p) for p in files}
    (folder / "digests.json").write_text(json.dumps(listing, indent=1) + "\n")


def _text(
    data: Scenes, work: Path, steps: Steps, figures: dict[str, float]
) -> tuple[CLIPTokenizer, CLIPModel]:
    folder = work / "tokenizer"
    if not folder.exists():
        text.train_tokenizer(data.captions).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    clip, figures["retrieval@1 of 256"] = text.train_clip(data, tokenizer, work, steps.clip)
    print(f"vocabulary {len(tokenizer)}, {figures}", flush=True)
    return tokenizer, clip


def _autoencoder(
    data: Scenes, work: Path, steps: Steps, figures: dict[str, float]
) -> tuple[AutoencoderKL, torch.Tensor]:
    images = torch.from_numpy(data.images)
    as_float = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = autoencoder.pca_autoencoder(as_float[:6000])
    latents = _kept(work / f"latents-{steps.scenes}.pt", lambda: autoencoder.encode(vae, as_float))
    n = data.train_size
    autoencoder.train_decoder(vae, images[:n], latents[:n], work, steps.decoder)
    figures["autoencoder PSNR, dB"] = autoencoder.psnr(vae, as_float[-1000:], latents[-1000:])
    print(f"{figures}", flush=True)
    return vae, latents


def _kept(path: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return a tensor from disk, or make it and keep it there."""
    if not path.exists():
        torch.save(make(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    kept: torch.Tensor = torch.load(path, weights_only=True)
    return kept


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
    grid = images.reshape(8, 8, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(256, 256, 3)
    picture = Image.fromarray((grid * 255).round().astype(np.uint8))
    picture.resize((768, 768), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    app()
