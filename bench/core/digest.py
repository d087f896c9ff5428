"""Short digests of JSON values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
UNCHANGED = "unchanged"  # stands for the digest of no change of weights


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value; key order does not matter."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:16]
