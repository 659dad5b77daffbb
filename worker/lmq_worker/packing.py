"""Cuts what gathered into messages within the bounds of the wire. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lmq_proto import bounds
from lmq_proto.messages import Ended, Piece, Results, Text, TextReport

if TYPE_CHECKING:
    from collections.abc import Sequence


def text_reports(texts: Sequence[Text]) -> list[TextReport]:
    """Return texts as messages of at most TEXT_PIECES pieces and TEXT_BYTES bytes each."""
    reports: list[TextReport] = []
    current: list[Text] = []
    count = size = 0
    for text in texts:
        first = text.first
        run: list[Piece] = []
        for piece in text.pieces:
            piece_bytes = _bytes_at_most(piece.text)
            if count == bounds.TEXT_PIECES or (count and size + piece_bytes > bounds.TEXT_BYTES):
                if run:
                    current.append(msgspec.structs.replace(text, first=first, pieces=run))
                    first += len(run)
                    run = []
                reports.append(TextReport(texts=current))
                current, count, size = [], 0, 0
            run.append(piece)
            count += 1
            size += piece_bytes
        if run:
            current.append(msgspec.structs.replace(text, first=first, pieces=run))
    if current:
        reports.append(TextReport(texts=current))
    return reports


def result_batches(results: Sequence[tuple[Ended, bytes]]) -> list[tuple[Results, bytes]]:
    """Return results as messages of at most BATCH_JOBS ends and BODY_BYTES bytes each, with their bodies."""
    batches: list[tuple[Results, bytes]] = []
    ended: list[Ended] = []
    parts: list[bytes] = []
    size = 0
    for one, result in results:
        if ended and (len(ended) == bounds.BATCH_JOBS or size + len(result) > bounds.BODY_BYTES):
            batches.append((Results(ended=ended), b"".join(parts)))
            ended, parts, size = [], [], 0
        ended.append(one)
        parts.append(result)
        size += len(result)
    if ended:
        batches.append((Results(ended=ended), b"".join(parts)))
    return batches


def _bytes_at_most(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)
