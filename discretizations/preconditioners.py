"""Preconditioners of known optimizers, as functions on tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def second_moment_step(v: Tensor, g: Tensor, *, beta2: float) -> Tensor:
    r"""Adam's second moment :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`.

    Args:
        v: Second moment, any shape.
        g: Gradient, shape of ``v``.
        beta2: EMA coefficient in [0, 1).

    Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1.
    """
    return beta2 * v + (1.0 - beta2) * (g * g)


def adam_direction(m: Tensor, v: Tensor, *, beta1: float, beta2: float, step: Any, eps: float) -> Tensor:
    r"""Adam's preconditioned momentum with LITE's order of ε and bias correction.

    .. math:: a = \frac{m}{1-\beta_1^t}\,\frac{\sqrt{1-\beta_2^t}}{\sqrt v + \epsilon}

    The metric is :math:`F = \mathrm{diag}(\sqrt v)`. torch's Adam adds ε after the correction; they agree for ε → 0.

    Args:
        m: First moment (EMA), any shape.
        v: Second moment (EMA), shape of ``m``.
        beta1: EMA coefficient of ``m``.
        beta2: EMA coefficient of ``v``.
        step: t ≥ 1, a number or a 0-dimensional tensor on the device of ``m``.
        eps: ε > 0.

    Returns:
        a, shape of ``m``.

    Source: arXiv:2602.22681, AdamW-LITE.
    """
    correction = (1.0 - beta2**step) ** 0.5 / (1.0 - beta1**step)
    direction: Tensor = correction * m / (v.sqrt() + eps)
    return direction
