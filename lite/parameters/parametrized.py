"""Parameters behind parametrized weights: ``torch.nn.utils.parametrizations`` and torch's older functions.

The parameters that a parametrized weight is computed from count as the weight, since they are trained in its place.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

# Parameters with which weight_norm, spectral_norm and prune of torch.nn.utils replace a weight.
WEIGHT_PARTS = {"weight_g": "weight", "weight_v": "weight", "weight_orig": "weight"}


def parametrizations(module: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Parametrized attributes of a module: name, and the module that computes it.

    Args:
        module: Any module.
    """
    lists = module._modules.get("parametrizations")
    if isinstance(lists, nn.ModuleDict):
        for name, each in lists.items():
            if isinstance(each, ParametrizationList):
                yield name, each


def stored_weights(module: nn.Module, name: str = "weight") -> list[Tensor]:
    """Parameters that make up a module's weight (the weight itself if not parametrized); the one of its shape last.

    Args:
        module: Any module.
        name: Attribute of the weight.
    """
    for parametrized, each in parametrizations(module):
        if parametrized == name:
            return list(each.parameters(recurse=False))
    parts = [module._parameters.get(part) for part, whole in WEIGHT_PARTS.items() if whole == name]
    weights = [getattr(module, name, None)] if not any(part is not None for part in parts) else parts
    return [weight for weight in weights if isinstance(weight, Tensor)]


def stored_weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    """The parameter with the shape of a module's weight, if there is one.

    Args:
        module: Any module.
        name: Attribute of the weight.
    """
    weights = stored_weights(module, name)
    return weights[-1] if weights else None
