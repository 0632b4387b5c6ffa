r"""The elementwise AdamW-LITE rule, for embeddings, norms, heads and biases.

.. math::
    u = \frac{m}{c_1}\frac{\sqrt{c_2}}{\sqrt v+\epsilon}, \qquad
    W \leftarrow W - \eta\,[u + \lambda W + (\chi-1)(1-p)\odot(u + \lambda W)]

with the masses :math:`c_1 = 1-\theta_a^t` and :math:`c_2 = 1-b_2^t` of the averages m and v, and p the soft sharp mask
of :func:`discretizations.matrices.sharp_masks.coordinate_mask`.

Source: arXiv:2602.22681, AdamW-LITE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import PUBLISHED_WIDTH_FLOOR
from discretizations.preconditioners.masks import CoordinateMask
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.update_rule import UpdateRule
from lite.parameters.decay import decay_rate

ADAMW_KEYS = ("momentum", "v", "momentum_mass", "v_mass", "hi", "lo")  # keys of a parameter's state
_NO_SHARP, _ALL_SHARP = 1e-5, 1.0 - 1e-5  # below the first all is flat, above the second nothing (published code)


def adamw_rule(group: Mapping[str, Any]) -> UpdateRule:
    """The update rule of an AdamW group.

    With ``mask="threshold"`` the mask uses the published code's floor.

    Args:
        group: A parameter group.
    """
    theta, beta2 = group["adamw_betas"]
    floor = PUBLISHED_WIDTH_FLOOR if group.get("mask") == "threshold" else 0.0
    mask = CoordinateMask(sharp_fraction=group["sharp_fraction"], floor=floor, all_flat_below=_NO_SHARP)
    return UpdateRule(
        preconditioner=SecondMoment(beta2=beta2, eps=group["eps"], eps_first=True, mask=mask),
        alpha=1.0 - theta,
        gain=1.0 - theta,
        chi=group["chi"],
        decay=decay_rate(group),
        corrects_momentum=True,
        is_cautious=group["decay"] == "cautious",
        is_split=None if group["sharp_fraction"] <= _ALL_SHARP else False,
    )


def initial_adamw_state(group: Mapping[str, Any], w: Tensor) -> dict[str, Tensor]:
    """State before the first step: moments 0; v, masses and thresholds in at least float32.

    Args:
        group: The parameter group.
        w: Parameter, any shape; the moments get its memory format.
    """
    return {"momentum": torch.zeros_like(w), **adamw_rule(group).initial_memory(w)}
