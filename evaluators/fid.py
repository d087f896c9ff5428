"""FID and KID as clean-fid computes them, between generated images and MS-COCO val2014.

An image is resized to 299 x 299 by clean-fid's resizer (Pillow's bicubic, one channel at a time in
float32, clipped, not quantised; the aspect ratio is not kept) and goes through the TorchScript Inception
of 2015 (2048 features). Generated images are read from memory; PNG files of them would give the same
numbers.

The reference is the images ``COCO_val2014_<id>.jpg`` of all ids in the prompt set, even if fewer images
were generated. A missing or unreadable file is an error, because it would change the reference. Features
of the reference are extracted once and kept in the cache.

``torch.jit.load`` runs the program in the ``inception`` file: get it from its publisher. Another
TorchScript module is used as an extractor, too, from ``(n, 3, 299, 299)`` in 0..255 to ``(n, width)``.
Its distance is not FID, so the detail's ``metric`` contains the file's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bench import AssetError, Card, Context, Prompt, Sample, Score, SetScorer

if TYPE_CHECKING:
    from torch import Tensor

Crop = Literal["none", "center-512"]
Reference = Literal["prompts", "folder"]
INCEPTION = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of NVIDIA's inception-2015-12-05.pt (k-diffusion checks the same one)."""
_SHARD = 256  # reference images in memory at a time
_SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class InceptionDistance:
    """What FID and KID share.

    Args:
        mode: How images are resized, by clean-fid's name.
        crop: "none" squashes images to a square, as clean-fid does with folders. "center-512" first cuts
            out the central square and scales it to 512 pixels (Pillow's bicubic), which does not change
            512-pixel images. Both apply to generated and to real images.
        reference: "prompts": the real images of all ids in the prompt set; none may be missing.
            "folder": all images of the folder.
    """

    scope: ClassVar = "set"

    mode: Literal["clean"] = "clean"
    crop: Crop = "none"
    reference: Reference = "prompts"

    def assets(self) -> tuple[str, str]:
        """Name the extractor and the reference."""
        return ("inception", "coco-val2014|coco-reference")

    def check(self, prompts: Sequence[Prompt], asset: Callable[[str], Path]) -> None:
        """Refuse a folder in which an image of the reference is missing."""
        _reference_files(asset(self.assets()[1]), prompts, self.reference)


@dataclass(frozen=True)
class Fid(InceptionDistance):
    """Fréchet Inception distance to real images; lower is better.

    It is biased for few images: compare only numbers with the same N, which records and tables state.
    """

    card: ClassVar = Card(
        "On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
        "https://arxiv.org/abs/2104.11222",
        "https://github.com/GaParmar/clean-fid",
        version=2,
    )

    def prepare(self, ctx: Context) -> SetScorer:
        """Find the extractor and the reference; images of the reference are read when they are needed."""
        inception = _Inception(ctx, self)
        if inception.reference.is_file():
            _moments(inception.reference)  # raises errors before hours of work
        return _FidScorer(inception)


@dataclass(frozen=True)
class Kid(InceptionDistance):
    """Kernel Inception distance to real images, unbiased; lower is better.

    As clean-fid computes it: the mean over random subsets of the squared maximum mean discrepancy with the
    kernel (x·y / width + 1)³. Subsets are drawn from a seed; clean-fid's are not repeatable.

    Args:
        subsets: Number of subsets.
        subset_size: Images of each side in a subset; fewer if one side has fewer images.
        seed: Seed of the subsets.
    """

    card: ClassVar = Card(
        "Demystifying MMD GANs",
        "https://arxiv.org/abs/1801.01401",
        "https://github.com/GaParmar/clean-fid",
        version=2,
    )

    subsets: Annotated[int, Field(ge=1)] = 100
    subset_size: Annotated[int, Field(ge=2)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0

    def assets(self) -> tuple[str, str]:
        """Name the extractor and the reference."""
        return ("inception", "coco-val2014|coco-reference-kid|coco-reference")

    def prepare(self, ctx: Context) -> SetScorer:
        """Find the extractor and the reference; images of the reference are read when they are needed."""
        inception = _Inception(ctx, self)
        if inception.reference.is_file():
            _features(inception.reference)
        return _KidScorer(inception, self)


class _Inception:
    """Turns images into features: generated ones and those of the reference."""

    def __init__(self, ctx: Context, settings: InceptionDistance) -> None:
        self.ctx, self.settings = ctx, settings
        self.path, self.reference = map(ctx.asset, settings.assets())
        with self.path.open("rb") as stream:
            digest = file_digest(stream, "sha256").hexdigest()
        self.published, self.digest = digest == INCEPTION, digest[:16]
        self.key = f"clean-fid mode={settings.mode} crop={settings.crop} extractor={self.digest}"

    @cached_property
    def _net(self) -> Any:
        import torch

        try:
            module = torch.jit.load(self.path, map_location=self.ctx.device).eval()
        except RuntimeError as exc:
            reason = str(exc).splitlines()[0]
            raise AssetError(f"inception: {self.path} is no TorchScript file ({reason})") from exc
        # The published file's own forward resizes; clean-fid skips that.
        return (lambda x: module.layers((x - 128) / 128)) if hasattr(module, "layers") else module

    def __call__(self, images: Iterable[Any]) -> Tensor:
        """Return features ``(n, width)`` of images or image files; NaN for one that cannot be read."""
        import torch

        files, found = list(images), []
        blank = torch.zeros(3, 299, 299)
        for start in range(0, len(files), self.ctx.batch_size):
            pixels = [self._pixels(file) for file in files[start : start + self.ctx.batch_size]]
            x = torch.stack([blank if p is None else p for p in pixels])
            with torch.no_grad():
                features = self._net(x.to(self.ctx.device)).flatten(1).float().cpu()
            features[[p is None for p in pixels]] = torch.nan
            found.append(features)
        return torch.cat(found)

    def _pixels(self, image: Any) -> Tensor | None:
        """Return an image as ``(3, 299, 299)`` in 0..255, as clean-fid prepares it."""
        import numpy as np
        import torch
        from cleanfid.resize import build_resizer
        from PIL import Image

        try:
            rgb = (Image.open(image) if isinstance(image, Path) else image).convert("RGB")
            if self.settings.crop == "center-512":
                side = min(rgb.size)
                left, top = ((length - side) // 2 for length in rgb.size)
                square = rgb.crop((left, top, left + side, top + side))
                rgb = square.resize((512, 512), Image.Resampling.BICUBIC)
            return torch.from_numpy(build_resizer(self.settings.mode)(np.array(rgb))).permute(
                2, 0, 1
            )
        except Exception:  # whatever the reason, the image is unscored
            return None

    def of_reference(self, prompts: Sequence[Prompt]) -> tuple[Iterator[Tensor], dict[str, str]]:
        """Return the reference's features in shards, and what the reference is."""
        files = _reference_files(self.reference, prompts, self.settings.reference)
        listing = "\n".join(f"{f.relative_to(self.reference)} {f.stat().st_size}" for f in files)
        name = sha256(f"{self.key}\n{listing}".encode()).hexdigest()[:16]
        protocol = {
            "reference": "images of the prompts' ids"
            if self.settings.reference == "prompts"
            else "all images of the folder",
            "reference_files": sha256(listing.encode()).hexdigest()[:16],
        }
        return self._shards(files, f"reference-{name}"), protocol

    def _shards(self, files: list[Path], name: str) -> Iterator[Tensor]:
        for start in range(0, len(files), _SHARD):
            part = files[start : start + _SHARD]
            self.ctx.progress("reference", start, len(files))
            kept = f"{name}/{start}-{_SHARD}"
            yield self.ctx.keep(kept, partial(self._of_files, part), shared=True)["features"].cpu()

    def _of_files(self, files: Sequence[Path]) -> dict[str, Tensor]:
        """Return features of reference images; all of them must be readable."""
        features = self(files)
        bad = [f.name for f, row in zip(files, features, strict=True) if row.isnan().any()]
        if bad:
            raise AssetError(
                f"coco-val2014={self.reference}: {len(bad)} images of the reference cannot be "
                f"read, the first is {bad[0]}; get them again: the reference must be complete"
            )
        return {"features": features}

    def protocol(self, n: int, published: str, other: str) -> dict[str, Any]:
        """Return what one needs to repeat a number, and the name of the number."""
        return {
            "metric": published if self.published else f"{other}-{self.digest[:8]}",
            "n": n,
            "mode": self.settings.mode,
            "crop": self.settings.crop,
            "format": "lossless, as PNG",
            "extractor": self.digest,
        }


@dataclass(frozen=True)
class _Scorer:
    inception: _Inception

    @property
    def key(self) -> str:
        return self.inception.key

    def features(self, samples: Sequence[Sample]) -> Tensor:
        return self.inception([s.image for s in samples])


class _FidScorer(_Scorer):
    def score(self, shards: Iterable[Tensor], prompts: Sequence[Prompt]) -> Score:
        from evaluators._moments import Moments

        found = Moments.of(shards)
        protocol = self.inception.protocol(found.n, "fid", "frechet")
        if found.n < 2:
            return Score(None, {**protocol, "error": "fewer than two images"})
        if self.inception.reference.is_file():
            mean, covariance = _moments(self.inception.reference, len(found.mean))
            return Score(found.frechet(mean, covariance), {**protocol, "reference": "mu, sigma"})
        features, about = self.inception.of_reference(prompts)
        real = Moments.of(features)
        protocol = {**protocol, **about, "reference_n": real.n}
        if real.n < 2:
            return Score(None, {**protocol, "error": "the reference has fewer than two images"})
        return Score(found.frechet(real.mean, real.covariance), protocol)


@dataclass(frozen=True)
class _KidScorer(_Scorer):
    settings: Kid

    def score(self, shards: Iterable[Tensor], prompts: Sequence[Prompt]) -> Score:
        import torch

        found = torch.cat(list(shards))
        if self.inception.reference.is_file():
            real = _features(self.inception.reference, found.shape[1])
            about = {"reference": "feats"}
        else:
            features, about = self.inception.of_reference(prompts)
            real = torch.cat(list(features))
        size = min(len(found), len(real), self.settings.subset_size)
        protocol = {
            **self.inception.protocol(len(found), "kid", "kernel"),
            **about,
            "reference_n": len(real),
            "subsets": self.settings.subsets,
            "subset_size": size,
            "seed": self.settings.seed,
        }
        if size < 2:
            return Score(None, {**protocol, "error": "fewer than two images"})
        value = kernel_distance(found, real, self.settings.subsets, size, self.settings.seed)
        return Score(value, protocol)


def kernel_distance(x: Tensor, y: Tensor, subsets: int, size: int, seed: int) -> float:
    """Return the mean over random subsets of the unbiased squared MMD, in float64.

    Args:
        x: Features ``(n, width)``.
        y: Features ``(m, width)``.
        subsets: Number of pairs of subsets.
        size: Rows of a subset, at most ``min(n, m)``.
        seed: Seed of the draws: for each pair, rows of ``x``, then rows of ``y``, without replacement.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(subsets):
        a, b = (
            side[rng.choice(len(side), size, replace=False)].double().numpy() for side in (x, y)
        )
        within = _kernel(a, a) + _kernel(b, b)
        np.fill_diagonal(within, 0.0)
        total += within.sum() / (size * (size - 1)) - 2 * _kernel(a, b).mean()
    return float(total / subsets)


def _kernel(a: Any, b: Any) -> Any:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _reference_files(folder: Path, prompts: Sequence[Prompt], which: Reference) -> list[Path]:
    """Return the reference's images; none if the reference is a file of statistics.

    Raises:
        AssetError: The folder has no images, or not exactly one for each prompt.
    """
    if folder.is_file():
        return []
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if which == "folder":
        if not found:
            raise AssetError(f"coco-val2014={folder}: expected a folder of images, got none")
        return found
    names = sorted({f"COCO_val2014_{p.id:0>12}.jpg" for p in prompts})
    files = {p.name: p for p in found}
    if missing := [name for name in names if name not in files]:
        raise AssetError(
            f"coco-val2014={folder}: expected the real image of each of the {len(names)} prompts, "
            f"{len(missing)} are missing, the first is {missing[0]}; add them, or give statistics of "
            "another reference with --asset coco-reference=FILE"
        )
    wanted = set(names)
    if twice := [p for p in found if p.name in wanted and p != files[p.name]]:
        raise AssetError(
            f"coco-val2014={folder}: {twice[0].name} is there twice, as {twice[0]} and "
            f"{files[twice[0].name]}: give the folder of one of them"
        )
    return [files[name] for name in names]


def _moments(path: Path, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Return clean-fid's mean ``(width,)`` and covariance ``(width, width)`` of a reference."""
    saved = _saved(path, "mu", "sigma")
    width = width or saved["mu"].numel()
    _expect(path, saved, {"mu": (width,), "sigma": (width, width)})
    return saved["mu"], saved["sigma"]


def _features(path: Path, width: int | None = None) -> Tensor:
    """Return clean-fid's features of a reference, ``(images, width)``."""
    saved = _saved(path, "feats")
    rows, *own = saved["feats"].shape
    _expect(path, saved, {"feats": (rows, width or (own[0] if own else 0))})
    return saved["feats"]


def _expect(path: Path, saved: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if (got := tuple(saved[name].shape)) != shape:
            raise AssetError(
                f"{path}: expected {name} of shape {shape}, as the extractor gives it, got {got}"
            )
        if not bool(saved[name].isfinite().all()):
            raise AssetError(f"{path}: {name} has numbers that are not finite")


def _saved(path: Path, *keys: str) -> dict[str, Tensor]:
    """Read arrays of an ``npz`` file that clean-fid wrote, without unpickling."""
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in keys}
    except Exception as exc:  # each kind of damage raises another type
        expected = " and ".join(keys)
        raise AssetError(
            f"{path}: expected {expected}, as clean-fid saves them, got: {exc}"
        ) from exc
