"""Short digests of JSON values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

UNCHANGED = "unchanged"  # stands for the digest of no change of weights


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
