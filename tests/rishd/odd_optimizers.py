"""Faulty optimizers, for ``optimizer.name``."""

import torch


class FailsInStep(torch.optim.Optimizer):
    """Checks its settings only in ``step``."""

    def __init__(self, params, lr, weight_decay=0.0, eps=1e-8):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad / group["eps"], alpha=-group["lr"])
