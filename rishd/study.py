"""Studies by name: what ``rishd study NAME`` runs.

A study is a function of (quick, seed) that returns a :class:`StudyResult`. To add one, decorate it with
``@STUDIES.register()`` in a module of :mod:`rishd.studies`; the first line of its docstring is what the command line
shows. The modules are imported when :data:`STUDIES` is first read.
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
    """What a study found.

    Args:
        data: Everything, as plain data for JSON (no NaN or infinity: ``None``).
        table: Summary for people: rows, column ↦ text.
        figures: File stem ↦ function that draws.
        answer: What the study found, in a sentence or two, computed from the data.
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
        name: Of :data:`STUDIES`.
        quick: Less of it, for a first look.
        seed: Random seed.

    Raises:
        ValueError: for an unknown study, listing those that exist.
    """
    require_choice("study", name, STUDIES)
    return STUDIES[name](quick, seed)
