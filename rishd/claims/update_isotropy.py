"""Claim C14: isotropy of updates over the Hessian's directions, and their coverage by the momentum's mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Measurement, Panel
from rishd.claims.trial import Inequality, Parameters, Range, try_bounds
from rishd.studies.alignment import OPTIMIZERS, AlignmentStudy, alignment_study

_FULL = 100  # instances from which there is an adversary; each setting takes 1.5 s of one processor
_FEW, _SETTINGS = 2, (5, 12)  # settings without an adversary; fewest (an adversary needs five) and most with one
_SEEDS = 2  # trainings per setting
_RANDOM = 1.0 / 3.0  # isotropy of a random direction
_BOX = {
    "eta": Range(1e-3, 1e-2, log=True),
    "alpha": Range(0.05, 0.3),
    "concentration": Range(0.1, 1.0, log=True),
}
Setting: TypeAlias = tuple[AlignmentStudy, ...]


@register_claim("C14", "isotropy and alignment", expected="holds", seconds=50)
def update_isotropy(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Isotropy of updates and alignment of the momentum with the Hessian, on a tiny transformer.

    Statement: let :math:`I = (\sum_i s_i)^2/(p\sum_i s_i^2)` of the squared components :math:`s_i` along the
    Hessian's eigenvectors, :math:`\frac{1}{3}` for a random direction. On average over corpora and starts, I is larger
    for updates of Muon and SOAP than for SGD's, and larger for LITE's than for those of its base Muon. The momentum's
    right singular space covers more of the matrices' top Hessian eigenspaces than a random space does.

    Hypotheses: one-block transformers on Markov chains, trained by AdamW from random starts, after 10 and 60 steps.

    Proof: none.

    Check: the study `rishd study alignment` with random learning rates, momenta and corpus distributions, which an
    adversary also searches. An instance is one such setting, averaged over two trainings, with the worst stage
    counting. There are at most 12; with fewer than 100 instances (`--quick`) there are 2 and no adversary.

    Finding: this does not hold in every training. Of 400 trainings with random settings, Muon's update was more
    isotropic than LITE's in 15 (by 28% at :math:`\eta = 0.0051`), and SGD's was more isotropic than Muon's or SOAP's in
    2; the mask covered more than chance in all. Muon and SOAP are far from isotropic here, Muon hardly more isotropic
    than AdamW; LITE comes close. And some matrices are covered less than by chance.

    Source: motivation and Fig. 2 of arXiv:2602.22681; measured here.
    """
    is_full = instances >= _FULL
    count = int(np.clip(instances // 100, *_SETTINGS)) if is_full else _FEW
    trainings = _Trainings(rng.integers(0, 2**31, _SEEDS))
    drawn: list[Setting] = []

    def trial(parameters: Parameters) -> Mapping[str, Inequality]:
        rows = zip(*parameters.values(), strict=True)
        settings = [trainings(**{key: float(x) for key, x in zip(parameters, row, strict=True)}) for row in rows]
        drawn.extend(settings[: count - len(drawn)])  # the first call is for the random instances
        return _inequalities(settings)

    bounds = try_bounds(trial, _BOX, rng, count, attacked=is_full)
    isotropy = {name: _isotropy(drawn, name) for name in OPTIMIZERS}
    scores = _scores(drawn)
    return [
        *bounds,
        *(
            Measurement(f"isotropy of {name} over a random direction's", isotropy[name].mean((-2, -1)) / _RANDOM)
            for name in OPTIMIZERS
        ),
        Measurement("isotropy of Muon over AdamW's", (isotropy["Muon"] / isotropy["AdamW"]).mean((-2, -1))),
        Measurement(
            "share of trainings and stages where Muon's update is more isotropic than LITE's",
            (isotropy["Muon"] > isotropy["LITE"]).mean((-2, -1)),
        ),
        Measurement("share of the matrices covered less than by chance", (scores < 1.0).mean((1, 2, 3))),
        _panel([study for setting in drawn for study in setting]),
    ]


class _Trainings:
    """Cached trainings of settings, since the three bounds' adversaries start with the same ones.

    Args:
        seeds: Seeds of each setting's trainings.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self._seeds = tuple(int(seed) for seed in seeds)
        self._made: dict[tuple[float, ...], Setting] = {}

    def __call__(self, *, eta: float, alpha: float, concentration: float) -> Setting:
        key = (eta, alpha, concentration)
        if key not in self._made:
            self._made[key] = tuple(
                alignment_study(quick=True, seed=seed, eta=eta, alpha=alpha, concentration=concentration)
                for seed in self._seeds
            )
        return self._made[key]


def _inequalities(settings: Sequence[Setting]) -> dict[str, Inequality]:
    of = {name: _isotropy(settings, name).mean(1) for name in OPTIMIZERS}
    coverage = _scores(settings).mean((1, 3))
    return {
        "isotropy of SGD over the lower of Muon's and SOAP's": _at_worst(of["SGD"], np.minimum(of["Muon"], of["SOAP"])),
        "isotropy of Muon over LITE's": _at_worst(of["Muon"], of["LITE"]),
        "chance over the mask's coverage of the top eigenspaces, mean of the matrices": _at_worst(
            np.ones(coverage.shape), coverage
        ),
    }


def _isotropy(settings: Sequence[Setting], optimizer: str) -> np.ndarray:
    """Isotropy of one optimizer's updates, shape ``(settings, trainings, stages)``."""
    return np.array(
        [
            [[study.update(optimizer, step).isotropy for step in study.steps] for study in setting]
            for setting in settings
        ]
    )


def _scores(settings: Sequence[Setting]) -> np.ndarray:
    """Coverage over chance, shape ``(settings, trainings, stages, matrices)``."""
    return np.array(
        [
            [
                [[row.score / row.chance for row in study.coverage if row.step == step] for step in study.steps]
                for study in setting
            ]
            for setting in settings
        ]
    )


def _at_worst(value: np.ndarray, limit: np.ndarray) -> Inequality:
    """A bound on every stage, shape ``(settings, stages)``; the worst stage of a setting counts."""
    worst, rows = (value / limit).argmax(-1), np.arange(len(value))
    return Inequality(value[rows, worst], limit[rows, worst])


def _panel(studies: Sequence[AlignmentStudy]) -> Panel:
    """Plot of update size by rank of the eigenvalue at the last stage, mean of the trainings."""
    last = studies[0].steps[-1]
    curves = []
    for name in OPTIMIZERS:
        size = np.mean([study.update(name, last).size for study in studies], axis=0)
        curves.append(Curve(name, (np.arange(len(size)) + 0.5) / len(size), size))
    curves.append(Curve("isotropic", np.array([0.0, 1.0]), np.ones(2), "reference"))
    return Panel(
        f"Updates after {last} steps, mean of {len(studies)} trainings",
        "rank of the Hessian's eigenvalue, sharpest first",
        "root mean square component, times √p",
        tuple(curves),
        log="y",
    )
