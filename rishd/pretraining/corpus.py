"""Real text to train on: the Python sources of installed packages, or the user's own files, split by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

# The default corpus: sources that the project's own dependencies put on every machine, 116 MB.
PACKAGES = ("matplotlib", "numpy", "scipy", "sympy", "transformers")
# Content hash of that corpus with the versions of constraints.txt (CPython 3.11, Linux x86-64).
PINNED_HASH = "acc6d28f9a7f845d26b54cab08557982c36cee3e8514df8fe2d3a716289bdded"
_TEXT_ENDINGS = (".txt", ".md", ".rst", ".py", ".text")
_PIECE_CHARACTERS = (
    1 << 16
)  # longer text files are cut here, at a line end, so that the split has pieces to choose from
_VALIDATION_SHARE = 0.02
_BUILD_FILES = ("__config__.py", "_distributor_init.py")  # written at build time: they differ between machines

Split = Literal["train", "validation"]


class CorpusError(ValueError):
    """The corpus is missing, empty, or too small to split; the message says which and what to do."""


@dataclass(frozen=True)
class Document:
    """A piece of text with a stable key, by whose hash it is ordered and split."""

    key: str
    text: str

    @property
    def rank(self) -> bytes:
        """A uniformly distributed order of keys."""
        return hashlib.sha256(self.key.encode()).digest()

    @property
    def is_low(self) -> bool:
        """Whether its rank is in the share held back: by key alone, so adding documents moves no other."""
        return int.from_bytes(self.rank[:8], "big") < _VALIDATION_SHARE * 2**64


@dataclass(frozen=True)
class Corpus:
    """Documents of a corpus.

    Args:
        name: What it is, for people.
        documents: In the order of their rank, which mixes packages and folders.
        content_hash: SHA-256 of all keys and texts.
        warning: Set when the default corpus differs from the pinned one.
    """

    name: str
    documents: tuple[Document, ...]
    content_hash: str
    warning: str = ""

    @property
    def held_back(self) -> int:
        """How many documents, the first in rank, are for validation: 2% by hash, at least one."""
        return min(max(1, sum(document.is_low for document in self.documents)), len(self.documents) - 1)

    def texts(self, split: Split) -> Iterator[str]:
        """Texts of one split."""
        chosen = slice(self.held_back) if split == "validation" else slice(self.held_back, None)
        return (document.text for document in self.documents[chosen])


def load_corpus(data: Sequence[Path] | None = None) -> Corpus:
    """The default corpus, or the user's files.

    Args:
        data: Text files, ``.jsonl`` files (one object with ``"text"`` a line), or folders of them; ``None`` takes the
            Python sources of the installed packages :data:`PACKAGES`.

    Raises:
        CorpusError: for a path that is missing or without text, a malformed jsonl line, or too few documents to split.
    """
    if data is None:
        corpus = _make("Python sources of " + ", ".join(PACKAGES), _package_sources())
        if corpus.content_hash != PINNED_HASH:
            warning = (
                f"the corpus has content hash {corpus.content_hash[:16]}, not the recorded {PINNED_HASH[:16]}: other "
                "package versions are installed, so losses do not compare to the recorded ones digit by digit"
            )
            corpus = Corpus(corpus.name, corpus.documents, corpus.content_hash, warning)
        return corpus
    return _make(", ".join(str(path) for path in data), _user_documents(data))


def _make(name: str, documents: Iterator[Document]) -> Corpus:
    ordered = tuple(sorted(documents, key=lambda document: document.rank))
    digest = hashlib.sha256()
    for document in ordered:
        for part in (document.key, document.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
    if len(ordered) < 2:
        raise CorpusError(
            f"{name} has {len(ordered)} document, too few to hold one back for validation; give more files, or one of "
            f"more than {_PIECE_CHARACTERS:,} characters."
        )
    return Corpus(name, ordered, digest.hexdigest())


def _package_sources() -> Iterator[Document]:
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise CorpusError(
                f"the default corpus needs {package}'s sources: pip install 'rishd[train]', or give --data."
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            if path.name not in _BUILD_FILES and path.stat().st_size:
                text = path.read_text(encoding="utf-8", errors="replace")
                yield Document(f"{package}/{path.relative_to(root).as_posix()}", text)


def _user_documents(data: Sequence[Path]) -> Iterator[Document]:
    for root in data:
        if not root.exists():
            raise CorpusError(f"corpus path {root} does not exist; give text or jsonl files, or a folder of them.")
        wanted = (*_TEXT_ENDINGS, ".jsonl")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in wanted and p.is_file())
        found = False
        for path in files:
            name = path.name if root.is_file() else path.relative_to(root).as_posix()
            for document in _jsonl(path, name) if path.suffix == ".jsonl" else _pieces(path, name):
                found = True
                yield document
        if not found:
            raise CorpusError(f"corpus path {root} holds no text; give {', '.join(wanted)} files that are not empty.")


def _jsonl(path: Path, name: str) -> Iterator[Document]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as problem:
                raise CorpusError(f'{path}, line {number}: expected an object with "text" ({problem}).') from None
            if not isinstance(text, str):
                raise CorpusError(f'{path}, line {number}: "text" is {type(text).__name__}, expected a string.')
            if text.strip():  # a lone surrogate is legal JSON but no text
                yield Document(f"{name}:{number}", text.encode("utf-8", "replace").decode())


def _pieces(path: Path, name: str) -> Iterator[Document]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        number = 0
        while lines := stream.readlines(_PIECE_CHARACTERS):
            text = "".join(lines)
            if "\0" in text:
                raise CorpusError(f"{path} holds NUL bytes: it is no text file.")
            if text.strip():
                yield Document(f"{name}#{number}", text)
            number += 1
