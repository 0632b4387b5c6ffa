"""Sphinx configuration. Build: sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html."""

import re
from importlib.metadata import version as installed_version
from typing import Any

project = "RISHD"
version = release = installed_version("rishd")
copyright = "The RISHD authors, MIT License"

extensions = [
    "myst_nb",  # myst_parser, and notebooks that are run at every build
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # ships MathJax 3 into _static, so that formulas need no network
]
exclude_patterns = ["_build"]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a busy machine
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
# Without a MathJax 3 setting of ours, myst-parser would write its own into mathjax4_config; the shipped MathJax is 3.
mathjax3_config = {"options": {"processHtmlClass": "tex2jax_process|mathjax_process|math|output_area"}}

html_theme = "furo"
html_title = f"RISHD {release}"
html_show_sphinx = False

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_preserve_defaults = True  # default values as written, not as Python prints them
# Signatures keep the names of our type aliases instead of what they expand to (Array is Any).
autodoc_type_aliases = {
    name: name
    for name in (
        "Array",
        "Coefficient",
        "FlatSplit",
        "Generator",
        "Kind",
        "Layout",
        "Mask",
        "NSDtype",
        "OnNonfinite",
        "Projector",
        "SaveGrid",
        "StepFunction",
        "TensorLayout",
    )
}
python_maximum_signature_line_length = 88  # longer ones get one parameter per line
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" as a field list; as directives they would compete with autodoc's members


def _skip_field(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples: their docstring is "Alias for field number 0"; the class describes them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _name_aliases(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Inside unions autodoc writes an alias as TypeAliasForwardRef('Array'); keep the name."""

    def plain(text: str | None) -> str | None:
        return text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return plain(signature), plain(returns)


def setup(app: Any) -> None:
    """Connect the two corrections of autodoc's output above."""
    app.connect("autodoc-skip-member", _skip_field)
    app.connect("autodoc-process-signature", _name_aliases)
