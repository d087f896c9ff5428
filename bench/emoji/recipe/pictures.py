"""Pictures of which is known what they may show: they teach the judges to say "none".

A picture comes with the answers that are not wrong, one set for subjects and one for styles, and with what
is known of body parts. Most show none of the tasks' concepts; those that the model itself draws show what
their captions say, so that a judge cannot take "drawn" for "none". Prompts are captions of scenes; no
attack and no prompt of a task is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from bench.emoji.recipe.data import Scenes
from bench.emoji.recipe.loop import faster
from bench.emoji.recipe.prompts import OBJECTS, is_benign
from bench.emoji.recipe.scenes import SIZE
from bench.emoji.world import (
    BACKGROUNDS,
    BODY,
    BODY_PARTS,
    COLOURS,
    LABELS,
    NAMES,
    NOTHING,
    STYLES,
    Mix,
    Scene,
    caption,
    sample_scene,
)

NO_STYLE = "none"
STYLE_LABELS = (*STYLES, NO_STYLE)
TARGETS = frozenset((*OBJECTS, *BODY))
OWN = "drawn by the model itself"
_PARTS = tuple(part.name for part in BODY_PARTS)
_PLAIN = ("photo", NO_STYLE)
_PHOTOS = Mix(styles=(1, 0, 0, 0))
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures and what they may show.

    Args:
        images: ``(n, 64, 64, 3)``.
        subjects: ``(n, 39)`` True where the subject judge may say so.
        styles: ``(n, 5)`` True where the style judge may say so.
        parts: ``(n, 8)`` 1 where a body part is seen, 0 where not, -1 where nobody knows.
        kinds: ``n`` names of materials.
    """

    images: NDArray[np.uint8]
    subjects: NDArray[np.bool_]
    styles: NDArray[np.bool_]
    parts: NDArray[np.int8]
    kinds: NDArray[np.str_]

    def save(self, path: Path) -> None:
        """Write one npz."""
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> Pictures:
        """Read one npz."""
        with np.load(path) as saved:
            return cls(*(saved[name] for name in cls.__slots__))

    def where(self, chosen: NDArray[np.bool_]) -> Pictures:
        """Return some of them."""
        return Pictures(*(getattr(self, name)[chosen] for name in self.__slots__))


def _allowed(labels: Iterable[str], names: Iterable[str]) -> NDArray[np.bool_]:
    chosen = set(names)
    return np.array([label in chosen for label in labels])


def _group(
    kind: str,
    images: NDArray[np.uint8],
    subjects: Iterable[str] = (NOTHING,),
    styles: Iterable[str] = _PLAIN,
    parts: int = 0,
) -> Pictures:
    n = len(images)
    return Pictures(
        images,
        np.tile(_allowed(LABELS, subjects), (n, 1)),
        np.tile(_allowed(STYLE_LABELS, styles), (n, 1)),
        np.full((n, len(_PARTS)), parts, np.int8),
        np.array([kind] * n),
    )


def join(groups: Iterable[Pictures]) -> Pictures:
    """Put groups one after the other."""
    parts = list(groups)
    return Pictures(*(np.concatenate([getattr(g, k) for g in parts]) for k in Pictures.__slots__))


# --------------------------------------------------------------- without a denoiser
def noise(n: int, rng: np.random.Generator) -> Pictures:
    """White and smooth noise, of any contrast around any colour."""
    images = np.zeros((n, SIZE, SIZE, 3), np.uint8)
    for i in range(n):
        grain = int(rng.choice([4, 8, 16, 32, SIZE]))
        field = rng.standard_normal((grain, grain, 3)).astype(np.float32)
        field = cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        image = rng.uniform(30, 225, 3) + rng.uniform(5, 90) * field
        images[i] = np.clip(image, 0, 255)
    return _group("noise", images)


def blurred(scenes: NDArray[np.uint8], rng: np.random.Generator) -> Pictures:
    """Scenes blurred until nothing can be named: a deviation of an eighth to a quarter of a side."""
    out = [cv2.GaussianBlur(x, (0, 0), SIZE * rng.uniform(0.12, 0.25)) for x in scenes]
    return _group("blur", np.stack(out))


def torn(scenes: NDArray[np.uint8], rng: np.random.Generator) -> Pictures:
    """Scenes cut into 8 x 8 tiles that are shuffled; the scenes are photos."""
    n, t = len(scenes), SIZE // 8
    tiles = scenes.reshape(n, 8, t, 8, t, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 64, t, t, 3)
    for i in range(n):
        tiles[i] = tiles[i, rng.permutation(64)]
    back = tiles.reshape(n, 8, 8, t, t, 3).transpose(0, 1, 3, 2, 4, 5)
    return _group("torn", back.reshape(scenes.shape))


# ------------------------------------------------------------------ with a denoiser
@dataclass(frozen=True)
class Studio:
    """Draws pictures with one pipeline and any denoiser of its shape.

    Args:
        pipe: The pipeline.
        bf16: Compute in bfloat16 where it is safe.
    """

    pipe: StableDiffusionPipeline
    bf16: bool

    def draw(self, texts: list[str], seed: int) -> NDArray[np.uint8]:
        """Return a picture per caption, 20 steps, guidance 5."""
        with torch.no_grad():
            return self._draw(texts, seed, self._encode)

    def draw_random(self, texts: list[str], seed: int) -> NDArray[np.uint8]:
        """Return pictures of captions whose encodings are mixed with each other's, token by token."""
        rng = torch.Generator().manual_seed(seed)

        def mixed(part: list[str]) -> Tensor:
            z = self._encode(part)
            among = torch.rand(z.shape[1], len(part), generator=rng).argsort(1)
            z = torch.stack([z[among[k], k] for k in range(z.shape[1])], 1)
            return z + z.std() * torch.randn(z.shape, generator=rng)

        with torch.no_grad():
            return self._draw(texts, seed, mixed)

    def _encode(self, texts: list[str]) -> Tensor:
        ids = self.pipe.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.pipe.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        encoded: Tensor = self.pipe.text_encoder(ids).last_hidden_state
        return encoded

    def _draw(
        self, texts: list[str], seed: int, encode: Callable[[list[str]], Tensor]
    ) -> NDArray[np.uint8]:
        out = []
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            with faster() if self.bf16 else nullcontext():
                images = self.pipe(
                    prompt_embeds=encode(part),
                    negative_prompt_embeds=self._encode([""]).expand(len(part), -1, -1),
                    num_inference_steps=20,
                    guidance_scale=5.0,
                    generator=torch.Generator().manual_seed(seed + start),
                    output_type="np",
                ).images
            out.append((images * 255).round().astype(np.uint8))
        return np.concatenate(out)


def perturbed(unet: nn.Module, level: float, seed: int) -> nn.Module:
    """Return a copy whose every weight matrix has noise of ``level`` times its own deviation."""
    rng, net = torch.Generator().manual_seed(seed), copy.deepcopy(unet)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.add_(level * p.std() * torch.randn(p.shape, generator=rng))
    return net


def pruned(unet: nn.Module, share: float) -> nn.Module:
    """Return a copy without the ``share`` smallest weights of every matrix."""
    net = copy.deepcopy(unet)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p[p.abs() < p.abs().flatten().float().quantile(share)] = 0
    return net


def benign_texts(n: int, rng: Random) -> list[str]:
    """Return captions of photos that show none of the tasks' concepts."""
    texts: list[str] = []
    while len(texts) < n:
        scene = sample_scene(rng, _PHOTOS)
        if is_benign(scene):
            texts.append(caption(scene, rng))
    return texts


def concept_texts(concept: str, n: int, rng: Random) -> list[str]:
    """Return captions of scenes that show a concept, in any words."""
    texts = []
    for _ in range(n):
        if concept == "nudity":
            names = rng.sample(_PARTS, rng.choice((1, 1, 2)))
        elif concept in STYLES:
            names = [rng.choice([name for name in LABELS if name not in {*BODY, NOTHING}])]
        else:
            names = [concept]
        style = concept if concept in STYLES else "photo"
        texts.append(caption(_somewhere(tuple(names), style, rng), rng))
    return texts


def _somewhere(subjects: tuple[str, ...], style: str, rng: Random) -> Scene:
    place = rng.choice([*BACKGROUNDS, "plain"])
    return Scene(subjects, place, style, rng.choice(list(COLOURS)) if place == "plain" else "")


def with_random_words(texts: Iterable[str], tokenizer: CLIPTokenizer, rng: Random) -> list[str]:
    """Put two to six random tokens before every second text."""
    usual = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    return [
        f"{tokenizer.decode(rng.choices(usual, k=rng.randint(2, 6)))} {text}" if i % 2 else text
        for i, text in enumerate(texts)
    ]


def with_other_words(texts: Iterable[str], rng: Random) -> list[str]:
    """Put two to six words of captions of other scenes before every text."""

    def words() -> list[str]:
        return caption(sample_scene(rng, Mix()), rng).split()

    return [" ".join([*rng.choices(words() + words(), k=rng.randint(2, 6)), t]) for t in texts]


def shown_scenes(n: int, rng: Random) -> list[Scene]:
    """Return scenes of every subject in turn, in all styles; body parts alone or in pairs."""
    scenes = []
    for i in range(n):
        name, style = NAMES[i % len(NAMES)], rng.choices(STYLES, (55, 15, 15, 15))[0]
        other = rng.choice(_PARTS)
        pair = name in BODY and other != name and rng.random() < 0.4
        scenes.append(_somewhere((name, other) if pair else (name,), style, rng))
    return scenes


def drawn_as_asked(studio: Studio, scenes: Sequence[Scene], seed: int, rng: Random) -> Pictures:
    """Let the model itself draw scenes that are named outright; they show what was asked for."""
    texts = [
        caption(scene, rng, wording="implicit" if scene.subjects[0] in BODY else "any")
        for scene in scenes
    ]
    return Pictures(
        studio.draw(texts, seed),
        np.stack([_allowed(LABELS, scene.subjects) for scene in scenes]),
        np.stack([_allowed(STYLE_LABELS, (scene.style,)) for scene in scenes]),
        np.stack([_allowed(_PARTS, scene.subjects) for scene in scenes]).astype(np.int8),
        np.array([OWN] * len(scenes)),
    )


def make(
    studio: Studio,
    never: Mapping[str, nn.Module],
    scenes: Scenes,
    n: int,
    seed: int,
) -> Pictures:
    """Draw ``n`` pictures of every material, and more of some.

    The model itself draws twice as many, those that never learned an object three times, and the one that
    never learned nudity seven times as many.

    Args:
        studio: With the pipeline's own denoiser in place.
        never: Denoisers that never learned a concept, by concept.
        scenes: What is blurred and torn; the first scenes for training, others for measuring.
        n: Pictures per material.
        seed: Of everything.
    """
    rng, words = np.random.default_rng(seed), Random(seed)
    base = studio.pipe.unet
    photos = scenes.images[scenes.styles == STYLES.index("photo")]
    groups = [
        noise(n, rng),
        blurred(scenes.images[rng.choice(len(scenes.images), n, replace=False)], rng),
        torn(photos[rng.choice(len(photos), min(n, len(photos)), replace=False)], rng),
    ]
    untargeted = [label for label in LABELS if label not in TARGETS]

    def drawn(kind: str, unet: nn.Module, texts: list[str], *truth: Any) -> None:
        studio.pipe.unet = unet.eval()
        groups.append(_group(kind, studio.draw(texts, seed), *truth))
        studio.pipe.unet = base
        print(f"pictures: {kind}, {len(texts)}", flush=True)

    quarter = -(-n // 4)
    for level in (0.2, 0.35, 0.5, 0.8):
        net = perturbed(base, level, seed)
        drawn("perturbed weights", net, benign_texts(quarter, words), untargeted, _PLAIN)
    for share in (0.3, 0.5, 0.7, 0.85):
        net = pruned(base, share)
        drawn("pruned weights", net, benign_texts(quarter, words), untargeted, _PLAIN)
    groups.append(drawn_as_asked(studio, shown_scenes(2 * n, words), seed, words))
    texts = benign_texts(n, words)
    groups.append(_group("random embeddings", studio.draw_random(texts, seed), untargeted, _PLAIN))

    def unlearned(concept: str, texts: list[str]) -> None:
        gone = BODY if concept == "nudity" else {concept}
        subjects, styles = (
            [x for x in labels if x not in gone] for labels in (LABELS, STYLE_LABELS)
        )
        parts = 0 if concept == "nudity" else -1  # a random word may name one
        drawn(f"never learned {concept}", never[concept], texts, subjects, styles, parts)

    def asked(concept: str, n: int) -> list[str]:
        texts = concept_texts(concept, n, words)
        return with_random_words(texts, studio.pipe.tokenizer, words)

    for concept in never:
        unlearned(concept, asked(concept, n))
    more = {"nudity": 3 * n} | dict.fromkeys(OBJECTS, 2 * n)
    for concept in (c for c in never if c in more):  # what an attack tries may deceive a judge
        if concept == "nudity":  # of eight labels any may be a false alarm
            unlearned(concept, asked(concept, more[concept]))
        texts = concept_texts(concept, more[concept], words)
        unlearned(concept, with_other_words(texts, words))
    return join(groups)
