"""Studies by name, for ``rishd study NAME``.

A study is a function of (quick, seed) that returns a :class:`StudyResult`. To add one, decorate it with
``@STUDIES.register()`` in a module of :mod:`rishd.studies`; the command line shows the first line of its docstring. The
modules are imported when :data:`STUDIES` is first read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from riemannian_ode.checks import require_choice
from riemannian_ode.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Findings(Protocol):
    """What a study's dataclass offers; the fields of :class:`StudyResult` are made of it."""

    @property
    def answer(self) -> str: ...
    @property
    def conclusion(self) -> str: ...
    def table(self) -> list[dict[str, str]]: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Args:
        data: All results as plain data for JSON (``None`` for NaN and infinity).
        table: Summary table: rows as column ↦ text.
        figures: File stem ↦ function that draws the figure.
        answer: The answer in a sentence or two, computed from the data.
        conclusion: The numbers behind the answer.
    """

    data: Mapping[str, Any]
    table: Sequence[Mapping[str, str]]
    figures: Mapping[str, Callable[[], Figure]]
    answer: str
    conclusion: str

    @classmethod
    def of(cls, study: Findings, **figures: Callable[[], Figure]) -> StudyResult:
        """The result of a study that writes its own table and sentences.

        Args:
            study: What was found.
            **figures: File stem ↦ function that draws.
        """
        return cls(study.as_dict(), study.table(), figures, study.answer, study.conclusion)


Study: TypeAlias = Callable[[bool, int], StudyResult]

STUDIES: Registry[Study] = Registry("study", "rishd.studies")


def summary(name: str) -> str:
    """First line of a study's docstring."""
    return (STUDIES[name].__doc__ or "").partition("\n")[0]


def run_study(name: str, *, quick: bool = False, seed: int = 0) -> StudyResult:
    """Run a study.

    Args:
        name: A key of :data:`STUDIES`.
        quick: Whether to run a smaller version for a first look.
        seed: Random seed.

    Raises:
        ValueError: for an unknown study, listing the known ones.
    """
    require_choice("study", name, STUDIES)
    return STUDIES[name](quick, seed)
