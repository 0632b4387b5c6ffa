"""Parameters that a weight is made of: ``torch.nn.utils.parametrizations``, and the older functions of torch.

What a parametrized weight is made of counts as the weight: it is trained in its place.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

# Parameters that weight_norm, spectral_norm and prune of torch.nn.utils put in place of a weight.
WEIGHT_PARTS = {"weight_g": "weight", "weight_v": "weight", "weight_orig": "weight"}


def parametrizations(module: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Parametrized attributes of a module: name, and the module that makes it.

    Args:
        module: Any module.
    """
    lists = module._modules.get("parametrizations")
    if isinstance(lists, nn.ModuleDict):
        for name, each in lists.items():
            if isinstance(each, ParametrizationList):
                yield name, each


def stored_weights(module: nn.Module, name: str = "weight") -> list[Tensor]:
    """Parameters that a module's weight is, or is made of where it is parametrized; the one of its shape last.

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
    """The parameter of the shape of a module's weight, if there is one.

    Args:
        module: Any module.
        name: Attribute of the weight.
    """
    weights = stored_weights(module, name)
    return weights[-1] if weights else None
