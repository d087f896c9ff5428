"""Stage 2, language: a byte-pair tokenizer and a CLIP pair trained on captions and pictures.

The text encoder alone ships. Contrastive learning at this size needs help: both poolers also predict
subject, background and style (weight 0.3).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from bench.emoji.recipe.data import CAPTIONS, HELD_OUT, Scenes
from bench.emoji.recipe.loop import Schedule, fit
from bench.emoji.world import BACKGROUNDS, LABELS, STYLES

LENGTH = 32
WIDTH = 128
VOCABULARY = 1400
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: list[list[str]]) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges were learnt from the captions; pad is EOS as in SD 1.x."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(_SPLIT), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator((text for texts in captions for text in texts), trainer)
    learnt = bpe.get_vocab()
    tokens = sorted(learnt, key=lambda token: learnt[token])
    known = set(tokens)
    tokens += [t for byte in alphabet for t in (byte, byte + "</w>") if t not in known]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=_merges(bpe),
        model_max_length=LENGTH,
        pad_token="<|endoftext|>",
    )


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    import json

    merges = json.loads(bpe.to_str())["model"]["merges"]
    pairs = (m.split(" ") if isinstance(m, str) else m for m in merges)
    return [(first, second) for first, second in pairs]


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return ids, ``(len(texts), 32)``."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
    return torch.tensor(batch.input_ids)


class _Heads(nn.Module):
    """CLIP with the auxiliary classifiers on both poolers."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.sizes = {
            "subject": len(LABELS),
            "background": len(BACKGROUNDS) + 1,
            "style": len(STYLES),
        }
        self.heads = nn.ModuleDict(
            {f"{side}-{k}": nn.Linear(WIDTH, n) for side in "ti" for k, n in self.sizes.items()}
        )


def train_clip(
    scenes: Scenes, tokenizer: CLIPTokenizer, folder: Path, steps: int
) -> tuple[CLIPModel, float]:
    """Return the trained CLIP pair and its held-out text-to-image retrieval@1 among 256."""
    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4}
    shared = {**size, "num_attention_heads": 4, "hidden_act": "quick_gelu", "projection_dim": WIDTH}
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={
            **shared,
            **special,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": LENGTH,
        },
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )
    net = _Heads(CLIPModel._from_config(config, attn_implementation="eager"))
    ids = tokenize(tokenizer, [t for texts in scenes.captions for t in texts])
    ids = ids.reshape(-1, CAPTIONS, LENGTH)
    images = torch.from_numpy(scenes.images)
    labels = {
        "subject": torch.from_numpy(scenes.subjects / scenes.subjects.sum(1, keepdims=True)),
        "background": torch.from_numpy(scenes.backgrounds),
        "style": torch.from_numpy(scenes.styles),
    }

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(scenes.train_size, (160,), generator=rng)
        text = ids[index, torch.randint(CAPTIONS, (160,), generator=rng)]
        text = text[:, : int((text != tokenizer.eos_token_id).sum(1).max()) + 1]
        out = net.clip(input_ids=text, pixel_values=_pixels(images[index]))
        diagonal = torch.arange(160)
        logits = out.logits_per_text
        total = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        for side, pooled in (
            ("t", out.text_model_output.pooler_output),
            ("i", out.vision_model_output.pooler_output),
        ):
            for key, truth in labels.items():
                weight = 1.0 if key == "subject" else 0.5
                head = net.heads[f"{side}-{key}"](pooled)
                total = total + 0.3 * weight * F.cross_entropy(head, truth[index])
        return total

    schedule = Schedule(steps, 1.5e-3, warmup=80, decay=0.9)
    fit("clip", net, loss, schedule, folder, weight_decay=0.05)
    last = slice(-256, None)
    with torch.no_grad():
        logits = net.clip(
            input_ids=ids[last, 0], pixel_values=_pixels(images[last])
        ).logits_per_text
    assert HELD_OUT >= 256
    return net.clip, float((logits.argmax(1) == torch.arange(256)).float().mean())


def _pixels(images: Tensor) -> Tensor:
    """Return pictures as the vision encoder sees them, reduced to 32 px."""
    return F.avg_pool2d(images.permute(0, 3, 1, 2).float() / 127.5 - 1, 2)
