"""A claim on the report's page: typeset sections, figures, and evidence by kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rishd.claims import CLAIMS, Bound, ClaimResult, Identity, Measurement, Panel, Proof
from rishd.report.claim_figures import panel_figure, trials_figure
from rishd.report.typeset import scripts, typeset
from rishd.report.vector import inline_svg, line_marks

_ATTAINED, _FAR = 0.99, 0.5  # tightness above which a bound counts as attained, and below which as far from attained


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend in the page's text.

    Args:
        mark: Sample of the line.
        label: Its text.
    """

    mark: Markup
    label: str


@dataclass(frozen=True)
class Drawing:
    """A figure of a claim.

    Args:
        title: Title.
        svg: The figure.
        keys: Legend of its curves; empty if the evidence table has it.
    """

    title: Markup
    svg: Markup
    keys: Sequence[Key]


@dataclass(frozen=True)
class ClaimView:
    """A claim on the page.

    Args:
        result: Verdict and evidence.
        summary: First line of its statement, typeset.
        sections: Typeset sections (Statement, Hypotheses, …) by heading.
        drawings: Its figures.
        marks: Sample of each curve in the trials' figure, by the index of its evidence.
    """

    result: ClaimResult
    summary: Markup
    sections: Mapping[str, Markup]
    drawings: Sequence[Drawing]
    marks: Mapping[int, Markup]

    @property
    def proofs(self) -> list[Proof]:
        """Symbolic proofs."""
        return [part for part in self.result.evidence if isinstance(part, Proof)]

    @property
    def bounds(self) -> list[tuple[int, Bound]]:
        """Bounds with their indices in the evidence."""
        return [(place, part) for place, part in enumerate(self.result.evidence) if isinstance(part, Bound)]

    @property
    def identities(self) -> list[tuple[int, Identity]]:
        """Identities with their indices in the evidence."""
        return [(place, part) for place, part in enumerate(self.result.evidence) if isinstance(part, Identity)]

    @property
    def measurements(self) -> list[Measurement]:
        """Measurements, which have no bound."""
        return [part for part in self.result.evidence if isinstance(part, Measurement)]


@dataclass(frozen=True)
class Standing:
    """Attained bounds and bounds far from attained.

    Args:
        attained: Claims and bounds that instances attain up to 1%, so that their constants cannot be improved.
        far: Claims and bounds to which no instance found comes within a factor of two.
    """

    attained: Sequence[tuple[str, Bound]]
    far: Sequence[tuple[str, Bound]]


def claim_view(result: ClaimResult, *, link_to: Collection[str]) -> ClaimView:
    """Build the view of a claim.

    Args:
        result: Result of a claim; a claim missing from this version's registry has no statement.
        link_to: Claims on the page, for links.
    """
    sections = dict(CLAIMS[result.key].sections) if result.key in CLAIMS else {"": result.title}
    others = [key for key in link_to if key != result.key]
    typeset_sections = {heading: typeset(text, link_to=others) for heading, text in sections.items()}
    drawings = [_panel(panel, f"{result.key}-{number}") for number, panel in enumerate(result.panels)]
    trials = {
        place: part
        for place, part in enumerate(result.evidence)
        if isinstance(part, Bound | Identity) and part.values.size
    }
    marks: dict[int, Markup] = {}
    if trials:
        figure = trials_figure(list(trials.values()))
        marks = dict(zip(trials, line_marks(figure), strict=True))
        alt = f"Share of the instances of claim {result.key} up to each tightness; a curve for each bound and identity."
        svg = inline_svg(figure, name=f"{result.key}-trials", alt=alt)
        drawings.append(Drawing(Markup("How close trials come to the limit"), svg, ()))
    return ClaimView(result, typeset_sections.pop(""), typeset_sections, drawings, marks)


def standing(results: Sequence[ClaimResult]) -> Standing:
    """The attained bounds, and those that no instance approaches; only bounds attacked by an adversary count."""
    attacked = [
        (result.key, part)
        for result in results
        for part in result.evidence
        if isinstance(part, Bound) and part.adversary is not None and part.values.size and part.holds
    ]
    attained = [pair for pair in attacked if pair[1].worst >= _ATTAINED]
    far = [pair for pair in attacked if pair[1].worst < _FAR]
    return Standing(attained, sorted(far, key=lambda pair: pair[1].worst))


def _panel(panel: Panel, name: str) -> Drawing:
    figure = panel_figure(panel)
    labels = [curve.label for curve in panel.curves if curve.label]
    alt = f"{panel.title}: {panel.ylabel} against {panel.xlabel}. Curves: {', '.join(labels)}."
    keys = [Key(mark, label) for mark, label in zip(line_marks(figure), labels, strict=True)]
    return Drawing(scripts(panel.title), inline_svg(figure, name=name, alt=alt), keys)
