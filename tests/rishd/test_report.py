"""The report: one file, whole, safe and readable; and results that are unchanged after saving and loading."""

import json
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

from rishd.claims import CLAIMS, Bound, ClaimResult, Hypothesis, Identity, Measurement, Panel, Proof
from rishd.claims.evidence import Curve, WorstCase
from rishd.claims.validation import SavedResultsError, Validation
from rishd.commands.application import app
from rishd.report.claim_figures import panels_figure
from rishd.report.claim_views import standing
from rishd.report.in_short import NEXT_COMMANDS, in_short
from rishd.report.page import Report, Section, write_report
from rishd.report.study_records import StudyFolderError, read_studies, write_study
from rishd.report.typeset import number, ratio, scripts, typeset
from rishd.study import StudyResult

EVIL = '<script>alert(1)</script> & "quotes" f(w_k)'


def _invented(verdict="holds", **changes):
    """A result with every kind of evidence, and hostile names."""
    values = np.array([0.5, 0.25, np.nan])
    met = Hypothesis(EVIL, np.array([True, True, False]))
    evidence = (
        Bound(EVIL, values, np.ones(3), 1e-9, (met,), WorstCase(0.75, 30, {EVIL: [1.5, 2]}), {EVIL: EVIL}),
        Bound("nothing tried", values, np.ones(3), hypotheses=(Hypothesis("never", np.zeros(3, dtype=bool)),)),
        Identity(EVIL, np.array([0.0, 1e-17, 3e-15]), 1e-12, EVIL, (met,)),
        Proof(EVIL, [0, 0]),
        Proof("left over", [0, "x + 1"]),
        Measurement(EVIL, np.array([1.0, np.inf])),
    )
    curves = (Curve(EVIL, np.arange(3.0), np.arange(3.0)), Curve("", np.arange(3.0), np.ones(3), "bound"))
    panels = (Panel(EVIL, "time t", "f(w_t) − f*", curves),)
    return replace(ClaimResult("C1", EVIL, verdict, "proved", evidence, panels, 1.25, 7, EVIL), **changes)


class _Page(HTMLParser):
    """Resources, link targets and texts as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.loads, self.jumps, self.headings, self.silent = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            if name in attrs:
                (self.jumps if attrs[name].startswith("#") else self.loads).append(attrs[name])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" and not attrs.get("alt"):
            self.silent.append(attrs)
        if tag == "svg" and not (attrs.get("aria-hidden") == "true" or attrs.get("aria-label")):
            self.silent.append(attrs)


@pytest.fixture(scope="module")
def page_text(report_file):
    return report_file.read_text(encoding="utf-8")


def test_page_loads_nothing_and_every_link_has_its_target(page_text):
    page = _Page(page_text)
    assert [load for load in page.loads if not load.startswith("data:")] == []
    assert "http" not in page_text.replace("http-equiv", "")
    assert re.findall(r"url\((?!data:|#)", page_text) == []
    assert "@import" not in page_text
    assert "<script" not in page_text
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []
    assert {jump[1:] for jump in page.jumps} <= set(page.ids)


def test_page_has_every_claim_with_statement_hypotheses_figure_evidence_and_how_it_was_made(page_text, results):
    page = _Page(page_text)
    for key, result in results.items():
        assert key in page.ids
        assert f"#{key}" in page.jumps
        claim = page_text.split(f'<article class="claim" id="{key}">')[1].split("</article>")[0]
        for part in ("<dt>Hypotheses</dt>", "<dt>Check</dt>", "<dt>Source</dt>", 'class="statement"', '<svg viewBox="'):
            assert part in claim, (key, part)
        for part in result.evidence:
            assert str(scripts(part.name)) in claim, (key, part.name)
        assert f"rishd validate --claim {key} --seed 0 --instances 24" in claim
    for expected in (
        "damping",
        "<b>Yes, in [flat] directions.</b>",
        "It helps.",
        "A paragraph.",
        "torch.optim.AdamW",
        "sympy",
        "a fact",
        "A quick look",
    ):
        assert expected in page_text


def test_page_can_be_read_out(page_text):
    page = _Page(page_text)
    assert page.silent == []
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert np.diff(page.headings).max() == 1
    assert '<html lang="en">' in page_text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in page_text


@pytest.mark.parametrize("key", CLAIMS)
def test_statements_are_typeset_whole(key):
    for heading, text in CLAIMS[key].sections.items():
        html = str(typeset(text))
        assert html.count("<math") == text.count(":math:`") + text.count(".. math::"), heading
        assert "\\" not in html, heading  # a TeX command that was not recognised
        assert "merror" not in html, heading
        assert "system-message" not in html, heading


def test_claims_may_be_drawn_in_several_processes(tmp_path, as_validation):
    report = Report("R", as_validation([_invented(), _invented(key="C2")]))
    pages = []
    for jobs in (1, 2):
        write_report(tmp_path / "report.html", report, jobs=jobs)
        pages.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", (tmp_path / "report.html").read_text(encoding="utf-8")))
    assert pages[0] == pages[1]


def test_text_of_others_is_escaped(tmp_path, as_validation, draw_figure):
    result = _invented()
    sections = [Section(EVIL, [EVIL], draw_figure(), EVIL)]
    study = StudyResult({}, [{EVIL: EVIL}], {"mask": draw_figure}, EVIL, EVIL)
    write_study(tmp_path / "mask", "mask", study, quick=False, seed=0)
    content = Report(
        EVIL,
        as_validation([result]),
        sections=sections,
        studies=read_studies(tmp_path),
        correspondence=[{"scheme": "x", EVIL: EVIL}],
        facts={EVIL: EVIL},
    )
    write_report(tmp_path / "report.html", content)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10
    assert _Page(text).silent == []


def test_what_went_wrong_is_shown(tmp_path, as_validation):
    result = _invented(verdict="refuted")
    validation = replace(as_validation([result]), asked=("C1", "C2", "C3"))
    write_report(tmp_path / "report.html", Report("R", validation))
    text = " ".join((tmp_path / "report.html").read_text(encoding="utf-8").split())
    assert "interrupted after 1 of 3 claims. Without a result: C2, C3." in text
    assert "is refuted, expected proved" in text
    assert "not proved" in text and "<code>x + 1</code>" in text
    assert "no instance meets the hypotheses" in text
    assert "2 of 3" in text  # instances that meet the hypothesis
    assert "∞" in text


def test_the_first_screen_says_what_came_out_and_what_to_run(tmp_path, as_validation, draw_figure):
    verdicts = ("proved", "proved", "holds", "measured", "refuted")
    validation = as_validation([_invented(verdict, key=f"C{k}") for k, verdict in enumerate(verdicts, start=1)])
    brief = in_short(replace(validation, asked=(*validation.asked, "C6")))
    assert brief["What was checked"].startswith("5 claims")
    assert "up to 24 random instances" in brief["What was checked"]
    assert brief["What was checked"].endswith("cut short: 1 more were not tried.")
    assert brief["What holds"] == "2 are proved and 1 hold on every instance."
    assert brief["What was measured"] == f"1 claim: {EVIL} (C4)."
    assert brief["What was refuted"] == f"1 claim: {EVIL} (C5)."
    assert "What was not tried" not in brief
    assert in_short(as_validation([_invented("proved")]))["What was refuted"] == "Nothing."
    picture = Section("The picture", ["What it shows."], draw_figure(), "How it was made.")
    write_report(tmp_path / "report.html", Report("R", validation, picture=picture))
    screen = (tmp_path / "report.html").read_text(encoding="utf-8").split('id="in-short"')[1].split("<section")[0]
    for expected in (
        "2 are proved",
        "The picture",
        "What it shows.",
        "data:image/png",
        "How it was made.",
        "rishd study",
    ):
        assert expected in screen
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {command.split()[1] for command in NEXT_COMMANDS} <= known


def test_bounds_that_are_attained_and_far_ones_are_told(results):
    found = standing(list(results.values()))
    assert all(bound.worst >= 0.99 for _, bound in found.attained)
    assert all(bound.worst < 0.5 for _, bound in found.far)
    assert "C9b" in {key for key, _ in found.attained}  # its certificate without lookahead is sharp
    assert any("published rate" in bound.name for key, bound in found.far if key == "C16d")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.8e-6, "1.8·10⁻⁶"), (-3e-5, "−3.0·10⁻⁵"), (0.25, "0.25"), (1234.0, "1234"), (np.inf, "∞")],
)
def test_numbers_read_well(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.99999, "0.9999"),
        (1.0, "1"),
        (1.0000001, "1.0001"),
        (0.0012, "0.0012"),
        (1e9, "1.0·10⁹"),
        (np.nan, "not a number"),
    ],
)
def test_tightness_is_never_rounded_to_the_limit(value, text):
    assert ratio(value) == text


@pytest.mark.parametrize("span", [3.0, 15.0, 80.0, 300.0, 1e6])
def test_ticks_of_logarithmic_axes_can_be_read(span):
    """Between one and two decades only 2, 5 and the decades have labels; at least one, and none overlap."""
    low, high = 1.3, 1.3 * span
    panel = Panel("t", "x", "y", (Curve("c", np.array([low, high]), np.array([1.0, 2.0])),), log="x")
    figure = panels_figure([panel])
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0].xaxis
    first, last = axis.get_view_interval()
    ticks = [tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if first <= tick.get_loc() <= last]
    boxes = sorted((x.label1.get_window_extent() for x in ticks if x.label1.get_text()), key=lambda box: box.x0)
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_scripts_are_raised_but_names_stay():
    assert str(scripts("f(w_k) ≤ e^{−rt} L_s λ_max κ^2 ‖m‖_*")) == (
        "f(w<sub>k</sub>) ≤ e<sup>−rt</sup> L<sub>s</sub> λ<sub>max</sub> κ<sup>2</sup> ‖m‖<sub>*</sub>"
    )
    assert str(scripts("lite_step <b>")) == "lite_step &lt;b&gt;"
    html = str(typeset("From t_0 on, see C6 and ``w_k``.", link_to=["C6"]))
    assert 'From t<sub>0</sub> on, see <a href="#C6">C6</a>' in html
    assert "w_k" in html


def _luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(theme):
    """WCAG 2: 4.5 for text, 3 for lines of figures."""
    style = files("rishd.report").joinpath("templates", "style.css").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    colours = themes[theme]
    for name, least in {
        **dict.fromkeys(("ink", "soft", "accent", "good", "bad", "fine"), 4.5),
        **dict.fromkeys(("blue", "vermilion", "green", "purple", "orange", "sky"), 3.0),
    }.items():
        for ground in ("paper", "shade"):
            light, dark = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


def _same(a, b):
    if is_dataclass(a):
        return type(a) is type(b) and all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def test_results_come_back_from_a_file_to_the_last_bit(results, as_validation, tmp_path):
    validation = as_validation([*results.values()])
    validation.save(tmp_path / "results.json")
    assert _same(Validation.load(tmp_path / "results.json"), validation)
    invented = as_validation([_invented()])
    invented.save(tmp_path / "results.json")
    again = Validation.load(tmp_path / "results.json")
    assert _same(again, invented)
    assert again.results[0].as_dict() == invented.results[0].as_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "holds the summary of `rishd validate --format json`"),
        ("{}", "holds no results of claims"),
        ('{"written_by": "rishd validate", "format": 99}', "has format 99"),
        ('{"written_by": "rishd validate", "format": 1}', "is damaged"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SavedResultsError, match=message):
        Validation.load(tmp_path / "x.json")
    run = CliRunner().invoke(app, ["report", "--from", str(tmp_path / "x.json"), "--out", str(tmp_path / "r.html")])
    assert isinstance(run.exception, SavedResultsError)
    assert not (tmp_path / "r.html").exists()


def test_studies_are_read_as_they_were_written(tmp_path, draw_figure):
    study = StudyResult({"x": [1.0, None]}, [{"a": "1"}], {"one": draw_figure, "two": draw_figure}, "Yes.", "So it is.")
    write_study(tmp_path / "proxy", "proxy", study, quick=True, seed=5)
    write_study(tmp_path, "mask", study, quick=False, seed=0)
    first, second = read_studies(tmp_path)
    assert (first.name, first.quick, second.name, second.seed) == ("mask", False, "proxy", 5)
    assert (second.answer, second.conclusion, second.table) == ("Yes.", "So it is.", [{"a": "1"}])
    assert len(second.images) == 2
    (tmp_path / "mask.json").write_text('{"study": "mask"}')
    with pytest.raises(StudyFolderError, match=r"mask.json is not readable.*rishd study mask"):
        read_studies(tmp_path)
    with pytest.raises(StudyFolderError, match="holds no results of studies"):
        read_studies(tmp_path / "nowhere")
    assert read_studies(tmp_path / "nowhere", required=False) == []


def test_report_runs_the_claims_and_takes_them_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claims = ["--claim", "C6", "--claim", "C16f"]
    run = CliRunner().invoke(
        app, ["validate", *claims, "--instances", "9", "--seed", "4", "--jobs", "1", "--save", "r.json"]
    )
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["report", "--from", "r.json", "--out", "a/b.html"])
    assert run.exit_code == 0, run.output
    assert "report: " in run.output
    direct = CliRunner().invoke(
        app, ["report", *claims, "--instances", "9", "--seed", "4", "--jobs", "1", "--out", "c.html"]
    )
    assert direct.exit_code == 0, direct.output
    saved, ran = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a/b.html", "c.html"))

    def timeless(text):
        return re.sub(r"\d+\.\d s|<td class=\"num\">\d+\.\d</td>|\d{4}-\d\d-\d\d \d\d:\d\d", "", text)

    assert timeless(saved) == timeless(ran)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.html"]  # no partial file
    some = CliRunner().invoke(app, ["report", "--from", "r.json", "--claim", "C6", "--out", "d.html"])
    assert some.exit_code == 0, some.output
    assert 'id="C16f"' not in (tmp_path / "d.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "r.json", "--seed", "1"], "leave out --quick, --instances and --seed"),
        (["--out", "."], "is a folder; give the HTML file"),
        (["--out", "r.json/report.html"], "--out: r.json takes no files"),
        (["--studies", "nowhere", "--claim", "C6"], "holds no results of studies"),
        (["--claim", "C99"], "claim = 'C99' is unknown"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text("{}")
    run = CliRunner().invoke(app, ["report", *arguments])
    assert isinstance(run.exception, ValueError)
    assert message in str(run.exception)
    assert not (tmp_path / "runs" / "report.html").exists()


def test_an_interrupted_report_is_written_and_an_interrupted_validation_goes_on(tmp_path, monkeypatch):
    from rishd.claims import Claim

    monkeypatch.chdir(tmp_path)

    def interrupted(rng, instances):
        raise KeyboardInterrupt

    common = ["--claim", "C6", "--claim", "C16f", "--instances", "5", "--jobs", "1"]
    right = CLAIMS["C16f"]
    monkeypatch.setitem(CLAIMS, "C16f", Claim("C16f", "interrupted", interrupted))
    run = CliRunner().invoke(app, ["report", *common, "--out", "r.html"])
    assert run.exit_code == 130
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Without a result: C16f." in text
    assert 'id="C6"' in text
    run = CliRunner().invoke(app, ["validate", *common, "--save", "r.json"])
    assert run.exit_code == 130
    assert [result.key for result in Validation.load(tmp_path / "r.json").results] == ["C6"]
    monkeypatch.setitem(CLAIMS, "C16f", right)
    monkeypatch.setitem(CLAIMS, "C6", Claim("C6", "would interrupt", interrupted))
    refused = CliRunner().invoke(app, ["validate", *common[:-4], "--instances", "6", "--save", "r.json", "--resume"])
    assert "instances = 5, this run 6" in str(refused.exception)
    run = CliRunner().invoke(app, ["validate", *common, "--save", "r.json", "--resume", "--format", "json"])
    assert run.exit_code == 0, run.output
    assert [row["claim"] for row in json.loads(run.stdout)] == ["C6", "C16f"]


def test_norm_bars_have_one_height_unless_they_are_to_grow():
    flat = str(typeset(r":math:`\lVert R\rVert/\lVert m\rVert_F`"))
    assert flat.count('<mo stretchy="false">‖</mo>') == 4
    tall = str(typeset(r":math:`\left\lVert\frac{1}{2}\right\rVert + \lvert x\rvert`"))
    assert tall.count("<mo>‖</mo>") == 2
    assert tall.count('<mo stretchy="false">|</mo>') == 2


def test_text_that_is_no_markup_is_shown_with_a_message():
    html = str(typeset("The value |E(0)| and <b>."))
    assert "system-message" in html
    assert "&lt;b&gt;" in html
