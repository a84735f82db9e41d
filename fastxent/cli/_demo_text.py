"""The demo's text: the sentences of Python's own help, as padded arrays of small integers.

Symbol 0 marks both ends of a sentence; 1 to 95 are the printable ASCII characters from the blank to the tilde.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

N_SYMBOLS = 96
LONGEST = 400

_SENTENCE = re.compile(r"[A-Z\"(].*[a-z].*[.!?:]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(])")


def read_sentences() -> list[str]:
    """The distinct sentences of at most `LONGEST` characters in `pydoc_data.topics`; no headings, tables or code."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError("this Python comes without pydoc_data.topics, the text that the demo reads") from error
    sentences: dict[str, None] = {}  # ordered, and without the repetitions that would leak into the held-out part
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                if len(sentence) <= LONGEST and _SENTENCE.fullmatch(sentence):
                    sentences[sentence] = None
    return list(sentences)


def pad(sentences: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`tokens`, uint8 (sentences, time), padded with 0, and `lengths`, int64 (sentences,), both ends counted."""
    lengths = np.array([len(sentence) + 2 for sentence in sentences])
    tokens = np.zeros((len(sentences), lengths.max()), np.uint8)
    for row, sentence in zip(tokens, sentences, strict=True):
        row[1 : len(sentence) + 1] = np.frombuffer(sentence.encode("ascii", "replace"), np.uint8) - 31
    return tokens, lengths


def batches(sentences: Sequence[str], size: int) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Padded batches of `size` sentences of about equal length, so that little is padding."""
    ordered = sorted(sentences, key=len)
    return [pad(ordered[start : start + size]) for start in range(0, len(ordered), size)]
