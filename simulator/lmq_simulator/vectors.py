"""Embedding vectors: a direction drawn from the hash of a text, so that equal texts get equal vectors."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

# Vectors that are kept; benchmarks ask for the same few texts again and again.
_KEPT = 2048


@lru_cache(maxsize=_KEPT)
def vector_of(text: str, *, model: str, dimensions: int) -> tuple[float, ...]:
    """Return the unit-length vector of a text for a model with so many dimensions."""
    drawn = hashlib.shake_128(f"{model}\x1f{text}".encode()).digest(2 * dimensions)
    raw = [int.from_bytes(drawn[at : at + 2], "big") - 32767.5 for at in range(0, 2 * dimensions, 2)]
    length = math.sqrt(sum(value * value for value in raw))
    return tuple(value / length for value in raw)
