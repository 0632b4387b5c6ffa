"""Documents of text, Parquet and jsonl files, plain or compressed: C4 (``json.gz``), The Pile (``jsonl.zst``)."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import zstandard

from riemannian_ode.checks import one_line

# fmt: off
TEXT_ENDINGS = (
    ".txt", ".text", ".md", ".rst", ".tex", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go",
    ".java", ".kt", ".js", ".ts", ".jl", ".r", ".sh", ".sql",
)
# fmt: on
SHARD_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")
# In a folder, such files are usually settings, not text, so they are read only if named explicitly.
_NAMED_SHARD = ".json"
OnCorrupt: TypeAlias = Literal["error", "skip"]
_PIECE_CHARACTERS = 1 << 16  # longer text files are cut at a line end, so that a split has pieces to choose from
_ENCODING = "utf-8-sig"  # some editors put a byte-order mark at the start
_CHUNK = 1 << 18  # bytes
_SENTENCES = 10  # most sentences about malformed lines of one file
_ROWS = 256  # rows of a Parquet file decoded at a time
_LARGEST_WINDOW = 2**31  # window of zstd's long mode
BROKEN = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)  # errors of decompressors for a corrupt file


Split: TypeAlias = Literal["train", "validation"]
Position: TypeAlias = Any  # position in a corpus as JSON; each kind of corpus has its own form


class CorpusError(ValueError):
    """The corpus is missing, empty, corrupt or too small; the message names the part and the remedy."""


@dataclass(frozen=True)
class Document:
    """A piece of text with a stable key."""

    key: str
    text: str

    @property
    def rank(self) -> bytes:
        """Uniformly distributed rank of the key, which defines the order."""
        return sha256(self.key.encode()).digest()

    def is_held_back(self, share: float) -> bool:
        """Whether it is for validation; the hash of its text alone decides, so duplicates are on the same side."""
        return int.from_bytes(sha256(self.text.encode()).digest()[:8], "big") < share * 2**64


@dataclass
class Reader:
    """Reads documents, and records skipped parts.

    Args:
        text_field: Key of a jsonl object's text.
        on_corrupt: What to do with a malformed line or a broken file: ``"error"`` stops and names it; ``"skip"`` skips
            the line, or the rest of the file.

    Attributes:
        skipped: One sentence per skipped part, for at most ten lines of a file.
    """

    text_field: str = "text"
    on_corrupt: OnCorrupt = "error"
    skipped: list[str] = field(default_factory=list)
    _left_out: int = 0  # state of the file being read

    def documents(
        self, path: Path, name: str, *, position: Callable[[int], None] = lambda read: None
    ) -> Iterator[Document]:
        """Documents of one file, in file order.

        Args:
            path: The file.
            name: Prefix of its keys.
            position: Called with the number of bytes read so far.

        Raises:
            CorpusError: for a corrupt file, unless corrupt files are skipped.
        """
        self._left_out = 0
        try:
            if _ending(path) == ".parquet":
                yield from self._parquet(path, name, position)
            elif is_shard(path):
                yield from self._shard(path, name, position)
            else:
                yield from _pieces(path, name)
                position(path.stat().st_size)
        except _CorruptError as problem:
            self._leave_out(str(problem), path)
        except BROKEN as problem:
            self._leave_out(f"{path} is broken ({problem})", path)

    def _shard(self, path: Path, name: str, position: Callable[[int], None]) -> Iterator[Document]:
        with path.open("rb") as raw, _decompressed(path, raw) as stream:
            for number, line in enumerate(stream, start=1):
                position(raw.tell())
                if not line.strip():
                    continue
                try:
                    text = self._text(line)
                except _CorruptError as problem:
                    remedy = "; give files that are one JSON array as data.dataset" if _ending(path) == ".json" else ""
                    self._leave_out(f"{path}, line {number}: {problem}{remedy}", path)
                    continue
                if text.strip():
                    yield Document(f"{name}:{number}", text)

    def _parquet(self, path: Path, name: str, position: Callable[[int], None]) -> Iterator[Document]:
        import pyarrow as pa  # installed with datasets; takes half a second to import
        import pyarrow.parquet as pq

        size, number = path.stat().st_size, 0
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                columns = file.schema_arrow
                if self.text_field not in columns.names:
                    raise _CorruptError(
                        f"{path} has no column {self.text_field!r}, but {', '.join(columns.names)} (data.text_field)"
                    )
                kind = columns.field(self.text_field).type
                if pa.types.is_dictionary(kind):
                    kind = kind.value_type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise _CorruptError(f"{path}: column {self.text_field!r} is {kind}, expected strings")
                for batch in file.iter_batches(_ROWS, columns=[self.text_field]):
                    position(size * number // file.metadata.num_rows)
                    for text in batch.column(0).to_pylist():
                        number += 1
                        if text is not None and text.strip():
                            yield Document(f"{name}:{number}", text)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
            raise _CorruptError(f"{path} is broken after row {number} ({one_line(problem, 200)})") from None
        position(size)

    def _text(self, line: bytes) -> str:
        try:
            text = json.loads(line.decode(_ENCODING))[self.text_field]
        except UnicodeDecodeError as problem:
            raise _CorruptError(_not_utf8(problem)) from None
        # Also for nesting too deep for the parser, and numbers with more digits than Python converts.
        except (ValueError, LookupError, TypeError, RecursionError) as problem:
            raise _CorruptError(f'expected an object with "{self.text_field}" ({one_line(problem, 200)})') from None
        if not isinstance(text, str):
            raise _CorruptError(f'"{self.text_field}" is {type(text).__name__}, expected a string')
        return text.encode("utf-8", "replace").decode()  # a lone surrogate is legal JSON but not text

    def _leave_out(self, what: str, path: Path) -> None:
        if self.on_corrupt == "error":
            raise CorpusError(f"{what}; repair or remove it, or set data.on_corrupt = skip.") from None
        self._left_out += 1
        if self._left_out <= _SENTENCES:
            self.skipped.append(what)
        elif self._left_out == _SENTENCES + 1:
            self.skipped.append(f"{path}: more such lines")


class _CorruptError(ValueError):
    """Content of a file that is not text."""


def is_shard(path: Path) -> bool:
    """Whether a file has one document per line or row."""
    return path.name.lower().endswith((*SHARD_ENDINGS, _NAMED_SHARD))


def is_compressed(path: Path) -> bool:
    """Whether a file is a compressed shard."""
    return _ending(path) in {".gz", ".zst", ".parquet"}


def text_files(root: Path) -> tuple[list[tuple[Path, str]], str]:
    """Text files in a folder, or the file itself.

    Returns:
        The files with their names, sorted by name, and a sentence about ignored files (empty if there are none).

    Raises:
        CorpusError: for a missing path, or one without such files.
    """
    if not root.exists():
        raise CorpusError(f"corpus path {root} does not exist; give text or jsonl files, or a folder of them.")
    if root.is_file():
        return [(root, root.name)], ""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    wanted = (*TEXT_ENDINGS, *SHARD_ENDINGS)
    found = [path for path in files if path.name.lower().endswith(wanted)]
    taken = set(found)
    others = Counter(_ending(path) for path in files if path not in taken and not path.name.startswith("."))
    remedy = f"; {_NAMED_SHARD} files are read if they are named, or as data.dataset" if others[_NAMED_SHARD] else ""
    counts = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in others.most_common(5))
    if not found:
        raise CorpusError(
            f"corpus path {root} holds no text{f' but {counts}' if counts else ''}; give {', '.join(wanted)} files"
            f"{remedy}."
        )
    ignored = f"ignored in {root}: {others.total()} files that are not known as text ({counts}){remedy}"
    return [(path, path.relative_to(root).as_posix()) for path in found], ignored if counts else ""


def _pieces(path: Path, name: str) -> Iterator[Document]:
    with path.open(encoding=_ENCODING) as stream:
        number = 0
        try:
            while lines := stream.readlines(_PIECE_CHARACTERS):
                text = "".join(lines)
                if "\0" in text:
                    raise _CorruptError(f"{path} contains NUL bytes, so it is not a text file")
                if text.strip():
                    yield Document(f"{name}#{number}", text)
                number += 1
        except UnicodeDecodeError as problem:
            raise _CorruptError(f"{path}: {_not_utf8(problem)}") from None


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _not_utf8(problem: UnicodeDecodeError) -> str:
    return (
        f"byte {problem.object[problem.start]:#04x} is not UTF-8; convert text (iconv -f LATIN1 -t UTF-8), and give "
        "binary formats as data.dataset"
    )


@contextmanager
def _decompressed(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    if _ending(path) == ".gz":
        with gzip.open(raw) as stream:
            yield stream  # type: ignore[misc]  # reads like any binary file
    elif _ending(path) == ".zst":
        with io.BufferedReader(_ZstdStream(raw), _CHUNK) as stream:
            yield stream
    else:
        yield raw


class _ZstdStream(io.RawIOBase):
    """Reader of concatenated zstd frames, which, unlike the library's reader, detects a truncated last frame."""

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
