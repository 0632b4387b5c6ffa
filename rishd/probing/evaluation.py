"""Evaluation of a model without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Make the model a deterministic, twice differentiable function inside the block, and restore it afterwards.

    Dropout is off and batch norms keep their statistics; afterwards every module's mode and the random state are
    restored. ``scaled_dot_product_attention`` runs as products and a softmax, which can be differentiated twice, and
    autocast is off.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters()}
    with ExitStack() as stack:
        cuda = [device for device in devices if device.type == "cuda"]
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for device in devices:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
