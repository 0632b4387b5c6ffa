"""Optimizers that a comparison can add with ``rivals: true``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from riemannian_ode.checks import require_choice, shown


class Rival(NamedTuple):
    """An optimizer that competes with the baseline.

    Args:
        set: Settings of a run configuration by dotted key.
        rate: Ratio of its learning rates to the baseline's at the start of a search.
        module: Module of another package that it needs, or ``None``.
    """

    set: Mapping[str, Any]
    rate: float = 1.0
    module: str | None = None


# Where AdamW and SOAP were best with configs/family.yaml, over the best rate of Muon.
RIVALS: Mapping[str, Rival] = {
    "adamw": Rival({"optimizer.name": "adamw"}, rate=0.25),
    "normuon": Rival({"optimizer.name": "normuon"}),
    # A step is an angle. Muon's step has 0.2·lr per entry, on weights that start at 0.02 and end near 0.05.
    "muon, constant norm": Rival(
        {"optimizer.name": "muon", "optimizer.weight_decay": 0.0, "optimizer.settings.norm": "constant"}, rate=4.0
    ),
    "ademamix": Rival({"optimizer.name": "pytorch_optimizer:AdEMAMix"}, rate=0.25, module="pytorch_optimizer"),
    "soap": Rival({"optimizer.name": "soap"}, rate=0.5),
    "kl-soap": Rival({"optimizer.name": "soap", "optimizer.settings.divergence": "kl"}, rate=0.5),
}


def with_rivals(variants: Mapping[str, Any], rivals: Any, rates: Sequence[float]) -> dict[str, Any]:
    """Variants of a plan plus the requested rivals, as plain data; a variant with a rival's name replaces it.

    Args:
        variants: Variants by name.
        rivals: ``True`` for all, or names of :data:`RIVALS`.
        rates: The baseline's learning rates.

    Raises:
        ValueError: for an unknown name, or a rival whose package is missing.
    """
    if rivals is not True and not (isinstance(rivals, (list, tuple)) and all(isinstance(x, str) for x in rivals)):
        raise ValueError(f"rivals = {shown(rivals)} must be true, false, or a list of {', '.join(RIVALS)}.")
    added: dict[str, Any] = {}
    for name in RIVALS if rivals is True else rivals:
        require_choice("rivals", name, RIVALS)
        rival = RIVALS[name]
        if name in variants:
            continue
        if rival.module is not None and importlib.util.find_spec(rival.module) is None:
            raise ValueError(
                f"rivals has {name}, which needs {rival.module} (pip install 'rishd[bench]'); install it or list the "
                "others by name."
            )
        added[name] = {"set": dict(rival.set), "lr": [float(f"{rival.rate * rate:.6g}") for rate in rates]}
    return {**variants, **added}
