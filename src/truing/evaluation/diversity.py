"""How varied a set of completions is."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams / word n-grams over all texts. Range (0, 1]; 1 is all different.

    Source: Li et al. 2016 (arXiv 1510.03055), section 4. Falls with the amount of text: compare
    sets of like size only. Texts shorter than n words count nothing; with none long enough: 1.
    """
    grams = [
        tuple(words[i : i + n])
        for text in texts
        for words in [text.lower().split()]
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 1.0
