"""Documents of text files and of jsonl shards, plain or compressed like C4 (``json.gz``), The Pile (``jsonl.zst``)."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import zstandard

TEXT_ENDINGS = tuple(
    [
        ".txt",
        ".text",
        ".md",
        ".rst",
        ".tex",
        ".py",
        ".pyi",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".hpp",
        ".cu",
        ".rs",
        ".go",
        ".java",
        ".kt",
        ".js",
        ".ts",
        ".jl",
        ".r",
        ".sh",
        ".sql",
    ]
)
SHARD_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
OnCorrupt: TypeAlias = Literal["error", "skip"]
_PIECE_CHARACTERS = 1 << 16  # longer text files are cut here, at a line end, so that a split has pieces to choose from
_CHUNK = 1 << 18  # bytes
_LARGEST_WINDOW = 2**31  # of zstd's long mode
BROKEN = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)  # what decompressors say of a corrupt file


class CorpusError(ValueError):
    """The corpus is missing, empty, corrupt or too small; the message says which part and what to do."""


@dataclass(frozen=True)
class Document:
    """A piece of text with a stable key."""

    key: str
    text: str

    @property
    def rank(self) -> bytes:
        """A uniformly distributed order of keys."""
        return sha256(self.key.encode()).digest()

    def is_held_back(self, share: float) -> bool:
        """Whether it is for validation: by the hash of its text alone, so that a duplicate is on the same side."""
        return int.from_bytes(sha256(self.text.encode()).digest()[:8], "big") < share * 2**64


@dataclass
class Reader:
    """Reads documents, and notes what it had to leave out.

    Args:
        text_field: Where a jsonl object has its text.
        on_corrupt: What a malformed line or a broken file does: ``"error"`` stops, naming it; ``"skip"`` leaves out the
            line, or what is left of the file.

    Attributes:
        skipped: What was left out, a sentence each.
    """

    text_field: str = "text"
    on_corrupt: OnCorrupt = "error"
    skipped: list[str] = field(default_factory=list)

    def documents(
        self, path: Path, name: str, *, position: Callable[[int], None] = lambda read: None
    ) -> Iterator[Document]:
        """Documents of one file, in its order.

        Args:
            path: The file.
            name: What its keys begin with.
            position: Called with the bytes of the file that have been read.

        Raises:
            CorpusError: for a file that is corrupt, unless such files are skipped.
        """
        try:
            if is_shard(path):
                yield from self._shard(path, name, position)
            else:
                yield from _pieces(path, name)
                position(path.stat().st_size)
        except _CorruptError as problem:
            self._leave_out(str(problem))
        except BROKEN as problem:
            self._leave_out(f"{path} is broken ({problem})")

    def _shard(self, path: Path, name: str, position: Callable[[int], None]) -> Iterator[Document]:
        with path.open("rb") as raw, _decompressed(path, raw) as stream:
            for number, line in enumerate(stream, start=1):
                position(raw.tell())
                if not line.strip():
                    continue
                try:
                    text = self._text(line)
                except _CorruptError as problem:
                    self._leave_out(f"{path}, line {number}: {problem}")
                    continue
                if text.strip():
                    yield Document(f"{name}:{number}", text)

    def _text(self, line: bytes) -> str:
        try:
            text = json.loads(line.decode("utf-8", "replace"))[self.text_field]
        except (json.JSONDecodeError, KeyError, TypeError) as problem:
            raise _CorruptError(f'expected an object with "{self.text_field}" ({problem})') from None
        if not isinstance(text, str):
            raise _CorruptError(f'"{self.text_field}" is {type(text).__name__}, expected a string')
        return text.encode("utf-8", "replace").decode()  # a lone surrogate is legal JSON but no text

    def _leave_out(self, what: str) -> None:
        if self.on_corrupt == "error":
            raise CorpusError(f"{what}; repair or remove it, or set data.on_corrupt = skip.") from None
        self.skipped.append(what)


class _CorruptError(ValueError):
    """Something in a file that is no text."""


def is_shard(path: Path) -> bool:
    """Whether a file has a document a line."""
    return path.name.endswith(SHARD_ENDINGS)


def is_compressed(path: Path) -> bool:
    """Whether a file is a compressed shard."""
    return path.name.endswith((".gz", ".zst"))


def text_files(root: Path) -> list[tuple[Path, str]]:
    """Files with text in a folder (or the file itself) in the order of their names, and these names.

    Raises:
        CorpusError: for a path that is missing or has no such file.
    """
    if not root.exists():
        raise CorpusError(f"corpus path {root} does not exist; give text or jsonl files, or a folder of them.")
    if root.is_file():
        return [(root, root.name)]
    wanted = (*TEXT_ENDINGS, *SHARD_ENDINGS)
    found = sorted(path for path in root.rglob("*") if path.name.endswith(wanted) and path.is_file())
    if not found:
        raise CorpusError(f"corpus path {root} holds no text; give {', '.join(wanted)} files that are not empty.")
    return [(path, path.relative_to(root).as_posix()) for path in found]


def _pieces(path: Path, name: str) -> Iterator[Document]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        number = 0
        while lines := stream.readlines(_PIECE_CHARACTERS):
            text = "".join(lines)
            if "\0" in text:
                raise _CorruptError(f"{path} holds NUL bytes: it is no text file")
            if text.strip():
                yield Document(f"{name}#{number}", text)
            number += 1


@contextmanager
def _decompressed(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(raw) as stream:
            yield stream  # type: ignore[misc]  # reads like any binary file
    elif path.suffix == ".zst":
        with io.BufferedReader(_ZstdStream(raw), _CHUNK) as stream:
            yield stream
    else:
        yield raw


class _ZstdStream(io.RawIOBase):
    """Frames of zstd one after another; unlike the library's own reader it tells when the last one is cut short."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._left = raw, b""
        self._frame = self._new_frame()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            if self._frame.eof:
                rest = self._frame.unused_data or self._raw.read(_CHUNK)
                if not rest:
                    return 0
                self._frame = self._new_frame()
            else:
                rest = self._raw.read(_CHUNK)
                if not rest:
                    raise EOFError("it ends in the middle of a frame")
            self._left = self._frame.decompress(rest)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    @staticmethod
    def _new_frame() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
