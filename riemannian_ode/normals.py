r"""Counter-based standard normal numbers: a function of seed, member, step and index, without state.

Philox turns a counter and a key into random words. The counter holds the member and the step, so a member's numbers do
not depend on the other members, on how a run is divided, or on earlier draws. Two words give two normal numbers (Box
and Muller). :mod:`riemannian_ode.compiled.normals` does the same in C++.

Source: Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC '11; numpy's Philox 4×64-10.
"""

from __future__ import annotations

import math

import numpy as np

_UNIT = 2.0**-53  # words keep their upper 53 bits


def standard_normals(seed: int, step: int, members: int, count: int, *, first: int = 0) -> np.ndarray:
    """Independent N(0, 1) numbers for one step, shape ``(members, count)``.

    Pair j of a step is pair P = step·⌈count/2⌉ + j of its member. It lies in block P // 2 of the member's four-word
    blocks.

    Args:
        seed: Key, from 0 to 2¹²⁸ − 1.
        step: Number of the step, from 0.
        members: Number of members.
        count: Numbers per member and step.
        first: Number of the first member.
    """
    pairs = -(-count // 2)
    start, end = step * pairs, (step + 1) * pairs
    blocks = range(start // 2, (end - 1) // 2 + 1)
    words = np.stack([_block(seed, block, members, first) for block in blocks], axis=1)  # (members, blocks, 4)
    words = words.reshape(members, 2 * len(blocks), 2)[:, start - 2 * blocks[0] :][:, :pairs]
    radius = np.sqrt(-2.0 * np.log(((words[..., 0] >> np.uint64(11)) + np.uint64(1)) * _UNIT))
    angle = (words[..., 1] >> np.uint64(11)) * (2.0 * math.pi * _UNIT)
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normals.reshape(members, 2 * pairs)[:, :count]


def _block(seed: int, block: int, members: int, first: int) -> np.ndarray:
    """Four random words for every member, from the counters (member, block)."""
    counter = (first + (block << 64) - 1) % 2**256  # numpy increments the counter before it draws
    return np.random.Philox(counter=counter, key=seed).random_raw(4 * members).reshape(members, 4)
