"""Which other samples of a dataset are the negatives of one: of another class, drawn by its key.

CUB and ImageNet: of another class; AIST++: of another genre. A COCO picture has no class, so its
label is the set of its instance categories, which must differ; without instances any other picture
will do (`labels=None`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


class NegativePool:
    """Samples that negatives are drawn from; built once, because a draw takes no look at them all.

    Args:
        keys: of the samples, in any order: draws do not depend on it.
        labels: what must differ from the anchor's, one for each key (a class, or a frozenset of
            categories), or None where every other sample is a negative.

    Raises:
        ValueError: a key occurs twice, or keys and labels differ in number.
    """

    def __init__(self, keys: Sequence[str], labels: Sequence[Hashable] | None) -> None:
        if labels is not None and len(labels) != len(keys):
            raise ValueError(
                f"negatives need a label for each key: got {len(labels)} labels for {len(keys)} "
                "keys; give None where there are no labels"
            )
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        for one, other in zip(self.keys, self.keys[1:], strict=False):
            if one == other:
                raise ValueError(
                    f"negatives need distinct keys: got {one!r} twice; leave out the second"
                )
        self.codes: dict[Hashable, int] = {}
        self.labels: NDArray[np.int32] | None = None
        if labels is not None:
            coded = (self.codes.setdefault(labels[i], len(self.codes)) for i in order)
            self.labels = np.fromiter(coded, dtype=np.int32, count=len(keys))

    def draw(self, seed: int, key: str, label: Hashable, num: int) -> list[str]:
        """Return `num` distinct keys of another label, the same for the same seed and key.

        All sets of allowed keys are equally likely.

        Args:
            seed: of all draws.
            key: of the anchor, which need not be in the pool; never drawn itself.
            label: of the anchor; of no account in a pool without labels.
            num: how many, 0 or more.

        Raises:
            ValueError: the pool has fewer.
        """
        digest = hashlib.sha256(key.encode()).digest()
        generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
        code = self.codes.get(label, -1)
        chosen: dict[int, None] = {}
        for _ in range(_ROUNDS):  # nearly always the first is enough
            if len(chosen) >= num or not self.keys:
                break
            drawn = generator.integers(0, len(self.keys), 2 * num)
            chosen.update((i, None) for i in drawn.tolist() if self._is_allowed(i, key, code))
        taken = list(chosen)[:num]
        if len(taken) < num:
            taken += self._exact(generator, key, code, taken, num)
        return [self.keys[i] for i in taken]

    def _is_allowed(self, index: int, key: str, code: int) -> bool:
        if self.labels is not None and self.labels[index] == code:
            return False
        return self.keys[index] != key

    def _exact(
        self, generator: np.random.Generator, key: str, code: int, taken: list[int], num: int
    ) -> list[int]:
        """Draw what is lacking from a list of all that is allowed: few are, or few there are."""
        count = len(self.keys)
        allowed = np.ones(count, dtype=bool) if self.labels is None else self.labels != code
        place = bisect_left(self.keys, key)
        if place < count and self.keys[place] == key:
            allowed[place] = False
        available = int(allowed.sum())
        if available < num:
            other = "other keys" if self.labels is None else "keys of another label"
            raise ValueError(
                "train.contrast.num_negatives must not exceed the samples to draw from: got "
                f"{num} for {key!r}, for which there are {available} {other} among {count}; "
                "add data, or lower it"
            )
        allowed[taken] = False
        more = generator.choice(np.flatnonzero(allowed), num - len(taken), replace=False)
        return [int(i) for i in more]
