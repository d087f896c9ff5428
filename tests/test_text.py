"""What text encoders read."""

from __future__ import annotations

import re
import unicodedata

import regex
import torch
from tokenizers.models import BPE

from bench.plugins.registry import ROOT

ODD_TEXTS = [  # and what ftfy makes of them
    ("“a church” on the ‘beach’", "\"a church\" on the 'beach'"),
    ("it’s a dog’s house", "it's a dog's house"),
    ("a church &amp; a house", "a church & a house"),
    ("a church &lt;3 &quot;red&quot;", 'a church <3 "red"'),
    ("ａ ｃｈｕｒｃｈ！", "a church!"),
    ("a ﬁne ﬂower", "a fine flower"),
    ("schÃ¶n cafÃ©", "schön café"),
    ("cafe\u0301", "café"),
    ("a\u00a0church\u2003here", "a\u00a0church\u2003here"),
    ("\x1b[31mred\x1b[0m church", "red church"),
    ("tabs\tand\r\nlines", "tabs\tand\nlines"),
    ("A plain Church, 50% off…", "A plain Church, 50% off…"),
]


def test_texts_are_read_as_transformers_4_read_them(tiny) -> None:
    """Its slow tokenizer: ftfy, white space, small letters, words by a pattern, then merges of bytes."""
    folder = ROOT / "bench" / "emoji" / "weights" / "model" / "tokenizer"
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    bpe = BPE.from_file(*files, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in printed}
    shown |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in shown)}

    def ids(text: str) -> list[int]:
        found = words.findall(re.sub(r"\s+", " ", text).strip().lower())
        pieces = ["".join(shown[b] for b in word.encode()) for word in found]
        return [token.id for piece in pieces for token in bpe.tokenize(piece)]

    photo = type(tiny)(tiny.pipe, "photo", tiny.sampling)
    for odd, plain in ODD_TEXTS:
        assert photo.token_ids([odd]) == [ids(plain)], odd
        assert torch.equal(photo.encode([odd]), photo.encode([plain])), odd
        assert tiny.token_ids([odd]) == [ids(unicodedata.normalize("NFC", odd))], odd
    assert sum(tiny.token_ids([a]) != tiny.token_ids([b]) for a, b in ODD_TEXTS) >= 7
