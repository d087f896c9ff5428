"""The Model protocol on a diffusers StableDiffusionPipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import Parameter

from bench.core.errors import IncompatibleError, SpecError
from bench.core.memory import Room
from bench.core.protocols import Guidance, ParameterGroup
from bench.core.types import UNSCORED, Prompt, SamplerNoise, World
from bench.models.attention import wide_attention
from bench.models.clip import cleaned
from bench.models.schedule import NoisySteps, Schedule
from bench.sources.catalog import Sampling

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS = 4 * 512**2  # for the autoencoder at once: its layers need more memory than the denoiser's


class DiffusersModel:
    """A Stable Diffusion pipeline with gradients off, seen through the Model protocol.

    Args:
        pipe: The pipeline; its own scheduler only gives the noise schedule.
        world: Which world's prompts and judges fit it.
        sampling: How images are made.
        batch_size: Images made at once.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        world: World,
        sampling: Sampling,
        batch_size: int = 64,
    ) -> None:
        self.pipe, self.world, self.sampling, self.batch_size = pipe, world, sampling, batch_size
        self.notes: dict[str, Any] = {}  # what a method adds to the record
        self.source: DiffusersModel | None = None  # what this is a private copy of
        self.guidance = Guidance()
        self.screen: Callable[[list[Image.Image]], list[Image.Image]] | None = None
        self.refuse: Callable[[str], bool] | None = (
            None  # says which texts are not drawn: their images are black
        )
        self._rooms: dict[int, Room] = {}
        self.schedule = Schedule(pipe.scheduler)
        for part in (pipe.unet, pipe.text_encoder, pipe.vae):
            part.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's weights."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:  # the library's own properties search all modules, which is slow
        weight: Tensor = self.pipe.unet.conv_in.weight
        return weight

    @property
    def alphas(self) -> Tensor:
        """Cumulative signal levels of the 1000 training timesteps, float32."""
        return self.schedule.alphas.to(self.device, non_blocking=True)

    @property
    def prediction(self) -> str:
        """What the denoiser predicts: "epsilon" or "v_prediction"."""
        return self.schedule.prediction

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        side = self.sampling.size // self.pipe.vae_scale_factor
        return self.pipe.unet.config.in_channels, side, side

    @property
    def passes_per_image(self) -> int:
        """Denoiser passes that one image takes."""
        scheduler = self._scheduler(self.sampling.sampler)
        scheduler.set_timesteps(self.sampling.steps)
        return len(scheduler.timesteps) * (len(self.guidance.texts) + 1)

    def copy(self) -> DiffusersModel:
        """Return a model with its own denoiser and text encoder; the frozen autoencoder is shared."""
        parts = dict(self.pipe.components)
        for name in ("unet", "text_encoder"):
            parts[name] = copy.deepcopy(parts[name]).requires_grad_(False)
        return self._twin(type(self.pipe)(**parts, requires_safety_checker=False), self.sampling)

    def original(self) -> DiffusersModel:
        """Return the model that this is a private copy of, to predict with; it must stay as it is.

        Of any other model it is a copy, as it is now.
        """
        return self.source or self.copy()

    def cast(self, dtype: str) -> DiffusersModel:
        """Return a copy whose weights are of another type: "fp32", "bf16" or "fp16"."""
        twin = self.copy()
        twin.notes = dict(self.notes)
        if DTYPES[dtype] != self.dtype:
            twin.pipe.register_modules(vae=copy.deepcopy(self.pipe.vae))
            twin.pipe.to(dtype=DTYPES[dtype])
        return twin

    def resampled(self, sampler: str, steps: int) -> DiffusersModel:
        """Return a model with the same weights, not copied, and another sampler."""
        return self._twin(self.pipe, replace(self.sampling, sampler=sampler, steps=steps))

    def _twin(self, pipe: StableDiffusionPipeline, sampling: Sampling) -> DiffusersModel:
        twin = DiffusersModel(pipe, self.world, sampling, self.batch_size)
        twin.guidance, twin.screen, twin.refuse = self.guidance, self.screen, self.refuse
        return twin

    # ------------------------------------------------------------------ white box
    def parameters(self, group: ParameterGroup) -> dict[str, Parameter]:
        """Return the denoiser's parameters of a group by name; see :data:`bench.ParameterGroup`.

        Raises:
            IncompatibleError: The denoiser has none.
        """
        chosen = {
            name: parameter
            for name, parameter in self.pipe.unet.named_parameters()
            if _in_group(name, group)
        }
        if not chosen:
            raise IncompatibleError(f"the model has no parameters in group {group!r}")
        return chosen

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return latents ``(batch, c, h, w)`` with noise as at training timesteps ``t`` ``(batch,)``."""
        alpha = self.alphas[t.to(self.device)].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids without start, end and padding."""
        batch = self.pipe.tokenizer(self._cleaned(texts), add_special_tokens=False)
        return [list(ids) for ids in batch.input_ids]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the last hidden states, ``(batch, tokens, width)``; long texts are cut."""
        tokenizer = self.pipe.tokenizer
        batch = tokenizer(
            self._cleaned(texts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        with torch.no_grad(), wide_attention(self._weight):
            hidden: Tensor = self.pipe.text_encoder(batch.input_ids.to(self.device))[0]
        return hidden

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        """Return texts as the model's tokenizer expects them: only CLIP's expects cleaned ones."""
        return cleaned(texts) if self.world == "photo" else list(texts)

    def encode_embeddings(self, token_embeddings: Tensor) -> Tensor:
        """Run the text encoder on token embeddings, ``(batch, tokens, width)``, with gradients.

        A forward hook on the embedding table swaps its output: exact, and independent of the
        library's internals. Positions, causal mask and final norm are the encoder's own.
        """
        encoder = self.pipe.text_encoder
        ids = torch.zeros(token_embeddings.shape[:2], dtype=torch.long, device=self.device)
        table = encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda *_: token_embeddings.to(table.weight.dtype))
        try:
            with wide_attention(self._weight):
                hidden: Tensor = encoder(ids)[0]
        finally:
            hook.remove()
        return hidden

    def predict_noise(self, latents: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the noise in ``(batch, c, h, w)`` latents, float32, whatever the denoiser predicts.

        Timesteps ``t`` may be fractions, as LMS asks for them.
        """
        return self.schedule.noise(self.predict(latents, t, cond), t, latents)

    def predict(self, latents: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the denoiser's own prediction, noise or velocities, float32."""
        dtype = self.dtype
        with wide_attention(self._weight):
            out = self.pipe.unet(
                latents.to(dtype), t, encoder_hidden_states=cond.to(dtype), return_dict=False
            )
        result: Tensor = out[0].float()
        return result

    def denoise(
        self,
        latents: Tensor,
        cond: Tensor,
        guidance: Tensor | float,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        skip: int = 0,
        sampler_noise: Sequence[SamplerNoise] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sample with the model's guidance, without gradients; all texts of the guidance are in one batch.

        Args:
            latents: Unit Gaussian noise, ``(batch, c, h, w)``.
            cond: Text conditioning, ``(batch, tokens, width)``.
            guidance: Scale, one or ``(batch,)``.
            steps: Denoising steps; the model's own by default.
            sampler: "ddim", "lms", "pndm" or "dpm"; the model's own by default.
            skip: First steps to leave out (only for a sampler without a state, such as "ddim").
            sampler_noise: Sample with DDIM and noise in every step, one for each image.

        Yields:
            ``(t, latents)`` before each denoiser call, then ``(-1, final latents)``.
        """
        scheduler = self._scheduler("ddim" if sampler_noise else sampler or self.sampling.sampler)
        scheduler.set_timesteps(steps or self.sampling.steps, device=self.device)
        predicted = self._guided(scheduler, cond, guidance)
        step = NoisySteps(scheduler, sampler_noise) if sampler_noise else scheduler.step
        x = latents.float() * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps[skip:]:
                yield t, x
                x = step(predicted(x, t), t, x, return_dict=False)[0]
        yield torch.tensor(-1), x

    def _scheduler(self, sampler: str) -> Any:
        return self.schedule.sampler(sampler)

    def _guided(
        self, scheduler: Any, cond: Tensor, guidance: Tensor | float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that predicts one trajectory's steps with the model's guidance."""
        texts = self.guidance.texts
        beside = self.encode(texts).repeat_interleave(len(cond), dim=0)
        conds, branches = torch.cat([beside, cond]), len(texts) + 1
        combine = self.guidance.start()
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=self.device)

        def predicted(x: Tensor, t: Tensor) -> Tensor:
            inputs = scheduler.scale_model_input(torch.cat([x] * branches), t)
            *others, conditional = self.predict(inputs, t, conds).chunk(branches)
            return combine(others, conditional, scale.reshape(-1, 1, 1, 1))

        return predicted

    def initial_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return initial noise, one image per seed, the same on every device.

        Raises:
            SpecError: A seed is out of the range of torch's generator.
        """
        if odd := next((s for s in seeds if not -(2**63) <= s < 2**64), None):
            raise SpecError(f"seed {odd}: expected a whole number from 0 to 2**64 - 1")
        shape = self.latent_shape
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows).to(self.device)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return scaled posterior means of images, ``(batch, c, h, w)`` float32."""

        def work(rows: slice) -> Tensor:
            pixels = np.stack([np.array(image.convert("RGB")) for image in images[rows]])
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device, self.dtype)
            with torch.no_grad():
                mean: Tensor = self.pipe.vae.encode(x / 127.5 - 1).latent_dist.mean
            return mean.float() * self.pipe.vae.config.scaling_factor

        room = self._room(images[0].width * images[0].height)
        return torch.cat(list(room.parts(len(images), work)))

    # ------------------------------------------------------------------ black box
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        embeddings: Tensor | None = None,
        sampler_noise: Sequence[SamplerNoise] | None = None,
    ) -> list[Image.Image]:
        """Return one image per prompt; each depends on its own prompt only, not on the batch.

        An image whose latents or pixels are not finite is black and must not be judged: its
        ``info["unscored"]`` says why.
        """

        def sample(part: slice) -> Tensor:
            given = None if embeddings is None else embeddings[part]
            return self._sample(prompts[part], given, sampler_noise and sampler_noise[part])

        images: list[Image.Image] = []
        room = Room(self.batch_size)
        for latents in room.parts(len(prompts), sample):
            self.batch_size = min(self.batch_size, room.at_once)
            images += self._screened(self._decode(latents))
        return [
            _black(image) if self.refuses(prompt) else image
            for prompt, image in zip(prompts, images, strict=True)
        ]

    def _sample(
        self,
        prompts: Sequence[Prompt],
        embeddings: Tensor | None,
        sampler_noise: Sequence[SamplerNoise] | None,
    ) -> Tensor:
        texts = ["" if self.refuses(p) else p.text for p in prompts]
        cond = self.encode(texts) if embeddings is None else embeddings
        guidance = torch.tensor([p.guidance for p in prompts])
        start = self.initial_noise([p.seed for p in prompts])
        *_, (_, latents) = self.denoise(
            start, cond.to(self.device), guidance, sampler_noise=sampler_noise
        )
        return latents

    def refuses(self, prompt: Prompt) -> bool:
        """Say whether a prompt is not drawn."""
        return self.refuse is not None and self.refuse(prompt.text)

    def _screened(self, images: list[Image.Image]) -> list[Image.Image]:
        shown = self.screen(images) if self.screen else images
        return [m if UNSCORED in m.info else s for m, s in zip(images, shown, strict=True)]

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        size = (latents.shape[-2] * latents.shape[-1]) * self.pipe.vae_scale_factor**2
        parts = self._room(size).parts(len(latents), lambda r: self._decode_some(latents[r]))
        return [image for part in parts for image in part]

    def _room(self, size: int) -> Room:
        """Return for how many images of ``size`` pixels the autoencoder has memory at once."""
        return self._rooms.setdefault(size, Room(max(1, min(64, _PIXELS // size))))

    def _decode_some(self, latents: Tensor) -> list[Image.Image]:
        scaled = (latents / self.pipe.vae.config.scaling_factor).to(self.dtype)
        with torch.no_grad():
            x = self.pipe.vae.decode(scaled, return_dict=False)[0].float()
        pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
        drawn, decoded = (v.isfinite().flatten(1).all(1).tolist() for v in (latents, x))
        images = [Image.fromarray(array) for array in pixels.cpu().numpy()]
        for i, finite in enumerate(zip(drawn, decoded, strict=True)):
            if not all(finite):
                images[i] = _black(images[i])
                images[i].info[UNSCORED] = f"{'pixels' if finite[0] else 'latents'} are not finite"
        return images


def _black(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size)


_UNTRAINED = ("time_embedding.", "conv_norm_out.", "conv_out.")  # in the first code of ESD-u


def _in_group(name: str, group: ParameterGroup) -> bool:
    cross = "attn2" in name
    match group:
        case "full":
            return True
        case "esd-x":
            return cross
        case "esd-u":
            return not cross and not name.startswith(_UNTRAINED)
        case "selfattn":
            return "attn1" in name
        case "attn":
            return "attn1" in name or cross
        case "esd-x-strict":
            return cross and (".to_k." in name or ".to_v." in name)
