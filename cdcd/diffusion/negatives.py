"""Negative token sequences of the sample itself: its chunks or patches in another order.

Tokens int64 [b, l] in, negatives int64 [b, n, l] out. Those of other samples are chosen with the
data (`cdcd.data.negatives`), because which ones depends on keys and classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdcd.diffusion.share import Share


def derangements(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Permutations of 0..size-1 without a fixed point, int64 [num, size].

    Each is one cycle through all entries in random order, so none is the identity (the released
    code may keep the order, and shares one permutation over the batch: paper_vs_code D18).

    Raises:
        ValueError: size < 2, where no derangement exists.
    """
    if size < 2:
        raise ValueError(f"a derangement needs at least 2 chunks: got {size}")
    device = generator.device
    order = torch.rand(num, size, generator=generator, device=device).argsort(-1)
    # A cyclic shift along the random order has no fixed point: order[i] -> order[i + 1].
    result = torch.empty_like(order)
    return result.scatter_(1, order, order.roll(-1, dims=1))


def _orders(b: int, n: int, size: int, generator: torch.Generator, share: Share | None) -> Tensor:
    """Deranged orders of the n negatives of b samples, int64 [b * n, size]."""
    if share is None:
        return derangements(b * n, size, generator)
    return share.cut(derangements(share.total * n, size, generator), per_sample=n)


def shuffled_chunks(
    z_0: Tensor,
    num_negatives: int,
    num_chunks: int,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Intra-sample negatives: each sample's chunks in a deranged order, its own for every negative.

    Chunk borders are `round(i l / num_chunks)`, so any length works; chunks of equal length change
    places with each other, and every token is kept.

    Args:
        z_0: tokens, int64 [b, l].
        num_negatives: n.
        num_chunks: chunks a sequence is cut into, at least 2 and at most l.
        generator: source of the permutations.
        share: which samples of a larger batch these are; None for a whole one.

    Raises:
        ValueError: more chunks than tokens, or fewer than two.
    """
    b, l = z_0.shape
    if not 2 <= num_chunks <= l:
        raise ValueError(
            f"train.contrast.num_chunks must lie between 2 and the token length {l}: "
            f"got {num_chunks}"
        )
    device = z_0.device
    order = _orders(b, num_negatives, num_chunks, generator, share)
    borders = (torch.arange(num_chunks + 1, device=device) * l / num_chunks).round().long()
    sizes = borders.diff()
    # Where each token of the shuffled sequence comes from: walk the chunks in the new order.
    new_sizes = sizes[order]
    new_starts = new_sizes.cumsum(1) - new_sizes
    position = torch.arange(l, device=device).expand(order.shape[0], l).contiguous()
    slot = torch.searchsorted(new_starts.contiguous(), position, right=True) - 1
    source = borders[order.gather(1, slot)] + position - new_starts.gather(1, slot)
    return z_0[:, None].expand(b, num_negatives, l).gather(2, source.view(b, num_negatives, l))


def shuffled_patches(
    z_0: Tensor,
    num_negatives: int,
    grid: tuple[int, int],
    num_patches: int,
    generator: torch.Generator,
    share: Share | None = None,
) -> Tensor:
    """Intra-sample negatives of pictures: patches in a deranged order, its own for every negative.

    The grid is cut into k x k patches of equal size, k = sqrt(num_patches), which change places;
    every token is kept. `shuffled_chunks` on the raster shuffles horizontal bands instead, as the
    released code does.

    Args:
        z_0: tokens in raster order, int64 [b, l].
        num_negatives: n.
        grid: rows and columns of the tokens.
        num_patches: patches, a square number of at least 4.
        generator: source of the permutations.
        share: see `shuffled_chunks`.

    Raises:
        ValueError: the grid cannot be cut so.
    """
    b, l = z_0.shape
    rows, columns = grid
    check_patches(grid, num_patches)
    k = math.isqrt(num_patches)
    order = _orders(b, num_negatives, num_patches, generator, share)
    # Tokens of each patch in raster order, and where the raster takes each of them from.
    index = torch.arange(l, device=z_0.device).view(k, rows // k, k, columns // k)
    patches = index.transpose(1, 2).reshape(num_patches, -1)
    source = torch.empty(len(order), l, dtype=torch.long, device=z_0.device)
    source[:, patches.flatten()] = patches[order].flatten(1)
    return z_0[:, None].expand(b, num_negatives, l).gather(2, source.view(b, num_negatives, l))


def check_patches(grid: tuple[int, int], num_patches: int) -> None:
    """Refuse a number of patches that does not cut the grid into equal ones.

    Raises:
        ValueError: one line with the numbers that do.
    """
    rows, columns = grid
    side = math.gcd(rows, columns)
    fitting = [k * k for k in range(2, side + 1) if side % k == 0]
    if num_patches not in fitting:
        remedy = f"use {' or '.join(map(str, fitting))}" if fitting else "set intra_unit: tokens"
        raise ValueError(
            "train.contrast.num_chunks must be a square number of patches whose root divides both "
            f"sides of the token grid {rows} x {columns}: got {num_patches}; {remedy}"
        )
