"""Answers of studies follow their data: other numbers, another answer."""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest

import rishd.studies
from rishd.studies.alignment import OPTIMIZERS, AlignmentStudy, Coverage, UpdateSpectrum
from rishd.studies.certificate import CertificateStudy, Choice, LearningRateCase
from rishd.studies.correction import CorrectionRow, CorrectionStudy
from rishd.studies.damping import AblationRow, DampingStudy, DampingSweep
from rishd.studies.edge import EdgeRow, EdgeStudy
from rishd.studies.integrators import IntegratorStudy, Run
from rishd.studies.mask import MaskStudy, MaskSweep
from rishd.studies.modified import MethodRow, ModifiedStudy
from rishd.studies.noise import NoiseStudy, NoiseSweep
from rishd.studies.noise_schedules import BestChi, ScheduleStudy
from rishd.studies.proxy import METRICS, PROXIES, MetricRow, ProxyRow, ProxyStudy
from rishd.studies.robustness import RobustnessStudy, RobustnessSweep
from rishd.studies.schemes import SchemeStudy
from rishd.studies.worst_cases import MethodRow as WorstRow
from rishd.studies.worst_cases import SplitRow, WorstCaseStudy

ONE = np.ones(1)


def _alignment(score):
    updates = [UpdateSpectrum(name, 9, ONE, 0.1 * place, 0.5) for place, name in enumerate(OPTIMIZERS)]
    return AlignmentStudy((9,), (1.0,), ONE, tuple(updates), (Coverage("w", 9, score, 0.25),))


def _certificate(height):
    choices = [Choice(name, 1, 2.0, 1.0, height) for name in ("C9 (descent)", "C6 (stability)")]
    case = LearningRateCase("tuned", 0.1, 1.0, ONE, (*choices, Choice("grid search", 1, 2.0, 1.0, 1e-4)), {})
    return CertificateStudy(80, ONE, (1,), ONE, ONE, (case,))


def _correction(typical, ratio):
    return CorrectionStudy(0.1, 1.0, 1e-3, (CorrectionRow("Adam", 0.1, 1.0, typical, 0.1, 0.45, ratio, np.nan),))


def _damping(flat, sharp):
    limits = {"all directions": 0.05, "flat only": flat, "sharp only": sharp}
    sweeps = [DampingSweep(place, np.array([1.0, keeps]), ONE, ONE) for place, keeps in limits.items()]
    rows = [AblationRow("base", 1.0, 1.0, ONE, 1.0), AblationRow("LITE", 4.0, 1.0, ONE, flat)]
    return DampingStudy(150, 0.03, np.array([0.0, 8.0]), tuple(sweeps), tuple(rows))


def _edge(lite, sharpness):
    rows = [EdgeRow("Muon", 0.1, 1.0, 1.0, 1.0, 0.5), EdgeRow("MuonLITE", lite, 1.0, sharpness, 1.0, 0.5)]
    return EdgeStudy(10, 4.0, tuple(rows))


def _mask(wrong):
    height = np.array([1e-4, wrong])
    sweeps = [MaskSweep(fault, np.array([1.0, 2.0]), height, ONE) for fault in ("softness", "cadence", "error rate")]
    return MaskStudy(120, 0.1, 1.0, 1.0, 4.0, 5.0, tuple(sweeps))


def _modified(penalised):
    gaps = {"flow": ONE, "flow, read half a drift earlier": ONE, "penalised flow": penalised * ONE}
    rows = [
        MethodRow("heavy ball", 0.1, gaps | {"penalised flow": ONE}, 0.0, 0.0),
        MethodRow("LITE", 0.1, gaps, 0.1, 0.9),
    ]
    return ModifiedStudy(0.05, (), tuple(rows))


def _noise(last):
    base = np.array([20.0, last])
    sweeps = [NoiseSweep(name, base, np.ones(2), ONE, ONE, base, np.ones(2)) for name in ("constant", "annealed")]
    return NoiseStudy(300, 0.1, np.array([0.01, 1.0]), 0.3, tuple(sweeps), np.array([1]), ())


def _schedules(cosine):
    case = BestChi(0.1, 1.0, np.ones(3), np.array([2.0, cosine, 3.0]), ONE, 1.0, ONE, 1.0)
    return ScheduleStudy(20.0, (), (case,))


def _proxy(momentum, own):
    proxies = [ProxyRow(name, 0.5, np.array([momentum if name == "momentum" else 0.1])) for name in PROXIES]
    metrics = [MetricRow(name, 1.0, np.array([loss])) for name, loss in zip(METRICS, (own, 0.2), strict=True)]
    return ProxyStudy(10, 2, ONE, ONE, tuple(proxies), tuple(metrics))


def _robustness(*lite):
    sizes = np.array([0.0, 32.0])
    sweeps = [RobustnessSweep(f"spike {x:g}", "", sizes, np.ones(2), np.array([0.1, x])) for x in lite]
    half = [RobustnessSweep(name, "", sizes, np.ones(2), np.ones(2)) for name in ("float32", "bfloat16")]
    return RobustnessStudy(100, 0.1, 4.0, 5.0, (*sweeps, *half))


def _schemes():
    return SchemeStudy(0.1, 1.0 / 0.9, ONE, {}, ONE, {}, (), ())


def _worst_cases(best):
    method = WorstRow("heavy ball", 0.1, 0.1, 0.0, np.array([0.2]))
    shares = np.array([1 / 64, 1 / 16, 1 / 4, 1.0])
    split = SplitRow(1.0, np.ones(4), 1.0, 1.4, best)
    return WorstCaseStudy(np.array([0.1]), (method,), (), 5, shares, (split, split), {4.0: (1.0, best)}, 1.0)


def _integrators(error):
    runs = [Run("a bowl", name, 0.1, n, 0.1, error, 0.0, "finished") for name, n in (("rk4", 900), ("dop853", 300))]
    return IntegratorStudy((*runs, Run("a bowl", "heun", 0.1, 9, 0.1, np.nan, 0.0, "diverged")), (), ())


CASES = [
    (_integrators(1e-7), "Cheapest to six digits", "dop853 on a bowl (300 gradients)", ""),
    (_integrators(1e-3), "No integrator", "", ""),
    (_alignment(0.5), "Yes, the momentum's mask finds", "covers 2 times", f"{OPTIMIZERS[-1]}'s update is the most"),
    (_alignment(0.125), "No, the momentum's mask does not find", "covers 0.5 times", ""),
    (_certificate(1e-4), "Yes, curvature alone does", "C9 (descent) 100%", "C6 (stability) 100%"),
    (_certificate(1e-1), "No, curvature alone does not", "C9 (descent) 25%", "(tuned)"),
    (_certificate(2.0), "No, curvature alone does not", "C9 (descent) nothing", ""),
    (_correction(0.5, 0.7), "No, R is not small", "is 0.5 of", "lowers the mean loss (0.7 times"),
    (_correction(0.01, 1.5), "Yes, R is small", "up to 45% of", "raises the mean loss (1.5 times"),
    (_correction(0.01, 1.001), "Yes, R is small", "", "hardly changes the mean loss"),
    (_damping(0.94, 0.07), "Hessian damping belongs in flat", "leaves 94% of", "LITE ends lowest"),
    (
        _damping(0.07, 1.5),
        "Hessian damping belongs in sharp",
        "leaves 150% of",
        "7% in flat directions only and 5% in all",
    ),
    (_edge(0.05, 20.0), "No: with full batches", "rate is 0.5 times Muon's", "a smaller rate"),
    (_edge(0.25, 0.25), "Yes: with full batches", "rate is 2.5 times Muon's", "a larger rate"),
    (_mask(1e-3), "The mask need not be exact", "softness 2, cadence 2 or error rate 2", ""),
    (_mask(0.9), "The mask must be exact", "softness 1, cadence 1 or error rate 1", ""),
    (_modified(0.1), "The step h = 1", "10 times closer to LITE", "hardly changes it for heavy ball"),
    (_modified(0.9), "The step h = 1", "explains none of the methods", ""),
    (_noise(8.0), "Yes, LITE's gain survives", "20 times lower", "8 times at the most"),
    (_noise(1.1), "No, strong noise", "20 times lower", "1.1 times at the most"),
    (_schedules(1.5), "The best χ(t)", "cosine comes nearest", "within 1.5 times"),
    (_schedules(9.0), "The best χ(t)", "constant comes nearest", "within 2 times"),
    (_proxy(0.1, 0.1), "Yes, the momentum is", "1 times as high", "is worth its cost"),
    (_proxy(0.25, 0.2), "No, the momentum is not", "2.5 times as high", "is not worth its cost"),
    (_robustness(0.5), "Yes.", "every size of: spike 0.5.", "under: nothing"),
    (_robustness(0.5, 7.0), "In part.", "spike 7 (from 32)", ""),
    (_robustness(7.0), "No.", "every size of: nothing", "spike 7 (from 32)"),
    (_schemes(), "No other scheme", "implicit-damping", "11% over"),
    (_worst_cases(0.25), "Yes, χ can help", "4 to 4.", "the worst case is 2 times"),
    (_worst_cases(1.0), "No, χ does not help", "χ changes nothing", ""),
]


@pytest.mark.parametrize(("study", "begins", *"ab"), CASES, ids=[f"{type(x[0]).__name__}-{x[1]}" for x in CASES])
def test_the_answer_is_that_of_the_data(study, begins, a, b):
    assert study.answer.startswith(begins)
    assert a in study.answer
    assert b in study.answer


def test_an_answer_of_schemes_can_change(monkeypatch):
    monkeypatch.setattr(SchemeStudy, "reach", lambda self, scheme, beta: 2.0 if scheme == "leapfrog" else 1.0)
    assert _schemes().answer.startswith("Another scheme is faster")
    assert "leapfrog" in _schemes().answer
    assert "100% over" in _schemes().answer


def test_cases_cover_every_study():
    modules = [import_module(f"rishd.studies.{module.name}") for module in iter_modules(rishd.studies.__path__)]
    answering = {each for module in modules for each in vars(module).values() if hasattr(each, "answer")}
    assert answering == {type(study) for study, *_ in CASES}
