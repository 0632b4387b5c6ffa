"""Training text, split by document: installed packages' sources, the user's files, streamed shards, or a data set.

The hash of a document's text alone decides the side of the split, so training and validation never share a document,
not even a duplicate. The order of documents is always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from rishd.pretraining.config import DataConfig
from rishd.pretraining.file_hashes import HashedFiles
from rishd.pretraining.text_files import (
    CorpusError,
    Document,
    Position,
    Reader,
    Split,
    is_compressed,
    text_files,
)
from rishd.progress import Advance, silent

# The default corpus: 116 MB of sources that the project's dependencies install on every machine.
PACKAGES = ("matplotlib", "numpy", "scipy", "sympy", "transformers")
# Content hash of the corpus with the versions of constraints.txt (CPython 3.11, Linux x86-64).
PINNED_HASH = "acc6d28f9a7f845d26b54cab08557982c36cee3e8514df8fe2d3a716289bdded"
_BUILD_FILES = ("__config__.py", "_distributor_init.py")  # written at build time, so they differ between machines
_LARGEST_IN_MEMORY = 2**30  # bytes; larger corpora are streamed
_TELLING = 1 << 22  # bytes; a decompressor may have read ahead by up to this much


class Corpus(Protocol):
    """Documents in a fixed order, in two disjoint parts.

    Attributes:
        name: Description for display.
        content_hash: Hash of all text, independent of the location of its files.
        warning: Warning for the user; empty if there is none.
    """

    name: str
    content_hash: str
    warning: str

    @property
    def validation_share(self) -> float:
        """Share of the documents that are held back."""

    @property
    def skipped(self) -> Sequence[str]:
        """One sentence for each corrupt part that was skipped so far."""

    @property
    def is_streamed(self) -> bool:
        """Whether it is read on demand, instead of completely in advance."""

    def texts(self, split: Split, position: Position | None = None) -> Iterator[str]:
        """Texts of one part, from its beginning or a :meth:`position`."""

    def position(self) -> Position:
        """Position of the last call of :meth:`texts`, as plain data that is valid for both parts."""

    def fraction_read(self) -> float | None:
        """Fraction of the corpus read so far; ``None`` if the size is unknown, 0 if too little was read to tell."""

    def require_unchanged(self) -> None:
        """Raise an error if the text no longer matches ``content_hash``.

        Raises:
            CorpusError: naming the change.
        """


@dataclass
class CorpusInMemory:
    """A small corpus, in the order of its documents' ranks, which mixes packages and folders.

    Args:
        name: Description for display.
        documents: Documents in the order of their rank.
        content_hash: SHA-256 of all keys and texts.
        validation_share: Share of the documents that are held back, at least one.
        warning: Set when the default corpus differs from the pinned one.
        skipped: Corrupt parts that were skipped.
    """

    name: str
    documents: tuple[Document, ...]
    content_hash: str
    validation_share: float
    warning: str = ""
    skipped: list[str] = field(default_factory=list)
    _done: int = 0

    @property
    def is_streamed(self) -> bool:
        return False

    def texts(self, split: Split, position: Position | None = None) -> Iterator[str]:
        held_back = [document.is_held_back(self.validation_share) for document in self.documents]
        if not any(held_back) or all(held_back):  # few documents: one text and its duplicates
            one = self.documents[0].text
            held_back = [document.text == one for document in self.documents]
        for i in range(position or 0, len(self.documents)):
            self._done = i + 1
            if held_back[i] == (split == "validation"):
                yield self.documents[i].text

    def position(self) -> Position:
        return self._done

    def fraction_read(self) -> float | None:
        return self._done / len(self.documents)

    def require_unchanged(self) -> None:
        pass  # its text is in memory


@dataclass
class ShardedCorpus:
    """Files that are read on demand, in the order of their names.

    Args:
        files: Paths and their names.
        name: Description for display.
        reader: Reader of the files.
        validation_share: Share of the documents that are held back.
        warning: Warning for the user.
        progress: Called with (what, done, total) while the files are hashed.
    """

    files: Sequence[tuple[Path, str]]
    name: str
    reader: Reader
    validation_share: float
    warning: str = ""
    progress: InitVar[Advance] = silent

    def __post_init__(self, progress: Advance) -> None:
        self._sizes = [path.stat().st_size for path, _ in self.files]
        self._file = self._documents = self._bytes = 0
        self._hashed = HashedFiles([path for path, _ in self.files], progress)
        digest = hashlib.sha256(self.reader.text_field.encode())
        for (_, key), content in zip(self.files, self._hashed.digests, strict=True):
            digest.update(repr((key, content)).encode())
        self.content_hash = digest.hexdigest()

    @property
    def skipped(self) -> list[str]:
        return self.reader.skipped

    @property
    def is_streamed(self) -> bool:
        return True

    def texts(self, split: Split, position: Position | None = None) -> Iterator[str]:
        first, done = position or (0, 0)
        for number, (path, key) in enumerate(self.files):
            if number < first:
                continue
            self._file, self._bytes = number, 0
            for count, document in enumerate(self.reader.documents(path, key, position=self._note), start=1):
                self._documents = count
                if number == first and count <= done:
                    continue
                if document.is_held_back(self.validation_share) == (split == "validation"):
                    yield document.text

    def position(self) -> Position:
        return [self._file, self._documents]

    def fraction_read(self) -> float | None:
        read = sum(self._sizes[: self._file]) + self._bytes
        return read / sum(self._sizes) if read > _TELLING else 0.0

    def require_unchanged(self) -> None:
        self._hashed.require_unchanged()

    def _note(self, read: int) -> None:
        self._bytes = read


def load_corpus(config: DataConfig | None = None, progress: Advance = silent) -> Corpus:
    """The corpus of a run.

    Args:
        config: Paths of text files and shards (or folders of them), or the name of a data set; by default the Python
            sources of the installed packages :data:`PACKAGES`. Compressed shards, data sets and files of more than 1
            GiB in total are streamed.
        progress: Called with (what, done, total) while streamed files are hashed.

    Raises:
        CorpusError: for a missing path, a path without text, a corrupt file, or too few documents to split.
    """
    config = config or DataConfig()
    if config.dataset is not None:
        from rishd.pretraining.hub import HubCorpus  # importing datasets takes a second

        return HubCorpus(config, progress)
    if config.paths is None:
        return _default_corpus(config.validation_share)
    roots = list(map(Path, config.paths))
    found, notes = zip(*map(text_files, roots), strict=True)
    name, warning = ", ".join(config.paths), "; ".join(filter(None, notes))
    files = [entry for entries in found for entry in entries]
    reader = Reader(config.text_field, config.on_corrupt)
    total = sum(path.stat().st_size for path, _ in files)
    if total > _LARGEST_IN_MEMORY or any(is_compressed(path) for path, _ in files):
        return ShardedCorpus(files, name, reader, config.validation_share, warning, progress)
    documents: list[Document] = []
    for root, entries in zip(roots, found, strict=True):
        before = len(documents)
        for path, key in entries:
            documents += reader.documents(path, key)
        if len(documents) == before:
            raise CorpusError(f"corpus path {root} holds no text: all its files are empty.")
    corpus = _in_memory(name, documents, config.validation_share, skipped=reader.skipped)
    return replace(corpus, warning=warning)


def _default_corpus(validation_share: float) -> Corpus:
    corpus = _in_memory("Python sources of " + ", ".join(PACKAGES), list(_package_sources()), validation_share)
    if corpus.content_hash == PINNED_HASH:
        return corpus
    warning = (
        f"the corpus has content hash {corpus.content_hash[:16]}, not the recorded {PINNED_HASH[:16]}: other package "
        "versions are installed, so losses do not compare to the recorded ones digit by digit"
    )
    return replace(corpus, warning=warning)


def _in_memory(
    name: str, documents: list[Document], validation_share: float, skipped: list[str] | None = None
) -> CorpusInMemory:
    ordered = tuple(sorted(documents, key=lambda document: document.rank))
    digest = hashlib.sha256()
    for document in ordered:
        for part in (document.key, document.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
    if len({document.text for document in ordered}) < 2:
        raise CorpusError(
            f"{name} has {len(ordered)} document, too few to hold one back for validation; give more files, or one of "
            "more than 65,536 characters."
        )
    return CorpusInMemory(name, ordered, digest.hexdigest(), validation_share, skipped=skipped or [])


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
