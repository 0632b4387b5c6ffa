"""The cache: tokens match the current text, damaged files are rebuilt, and every wait ends."""

import gzip
import itertools
import json
import logging
import os
import shutil
import threading
import time
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rishd.pretraining import cache as cache_module
from rishd.pretraining import corpus as corpus_module
from rishd.pretraining import file_hashes, token_store
from rishd.pretraining.cache import CacheError, cache_folder, locked, read_record, write_record
from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import load_corpus
from rishd.pretraining.models import model_config
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.token_store import TokenStore
from rishd.pretraining.tokenizer import encoding_hash, load_tokenizer, train_tokenizer
from tests.rishd.runs import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_store, "_TOKENS_PER_FILE", 1 << 11)


def silent(what, done, total):
    pass


def within(seconds, function, *arguments):
    """A function's result or exception; a failure if it does not end in time."""
    outcome = []

    def work():
        try:
            outcome.append((function(*arguments), None))
        except BaseException as problem:
            outcome.append((None, problem))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"{function} still waits after {seconds} s"
    result, problem = outcome[0]
    if problem is not None:
        raise problem
    return result


def lines(count, word="river"):
    return [f"document {i}: the {word} {i * i:09} meets the valley" for i in range(count)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write(folder, kind, texts):
    """One corpus in a format; texts of equal lengths give files of equal sizes."""
    folder.mkdir(exist_ok=True)
    if kind == "text":
        (folder / "a.txt").write_text("\n".join(texts))
    elif kind in {"jsonl", "streamed jsonl", "dataset"}:
        (folder / "a.jsonl").write_bytes(jsonl(texts))
    elif kind == "json.gz":
        (folder / "a.json.gz").write_bytes(gzip.compress(jsonl(texts), compresslevel=0, mtime=0))
    elif kind == "jsonl.zst":
        data = jsonl(texts)  # in frames of raw blocks, as zstd stores what it cannot compress
        frame = b"\x28\xb5\x2f\xfd\x00\x58"
        blocks = [data[i : i + 100_000] for i in range(0, len(data), 100_000)]
        last = len(blocks) - 1
        body = b"".join((len(b) << 3 | (i == last)).to_bytes(3, "little") + b for i, b in enumerate(blocks))
        (folder / "a.jsonl.zst").write_bytes(frame + body)
        assert zstandard.ZstdDecompressor().stream_reader((folder / "a.jsonl.zst").read_bytes()).read() == data
    else:
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet", compression="none", use_dictionary=False)
    return folder


def load(folder, kind, **settings):
    where = {"dataset": str(folder)} if kind == "dataset" else {"paths": (str(folder),)}
    return load_corpus(DataConfig(**where, validation_share=0.2, **settings))


KINDS = ("text", "jsonl", "streamed jsonl", "json.gz", "jsonl.zst", "parquet", "dataset")


@pytest.fixture
def streaming(monkeypatch, request):
    if "streamed" in request.node.name:
        monkeypatch.setattr(corpus_module, "_LARGEST_IN_MEMORY", 0)


@pytest.mark.parametrize("set_back", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_text_after_an_edit_of_equal_size(tmp_path, kind, set_back, streaming, monkeypatch):
    monkeypatch.setattr(file_hashes, "_YOUNG", 0)  # the hash of a file that has just been written is kept
    texts = lines(3000)  # nearly 100 kB on either side of the edit
    folder = write(tmp_path / "text", kind, texts)
    (path,) = folder.iterdir()
    before = path.stat()
    old = load(folder, kind)
    tokenizer = word_level({"<end>": 0, "the": 1, "river": 2, "ocean": 3})
    store = TokenStore(old, "train", tokenizer, length=32, packing="concatenate")
    store.fill(10**9)
    assert load(folder, kind).content_hash == old.content_hash
    time.sleep(0.05)  # more than a tick of the file system's clock
    texts[1450:1550] = lines(3000, "ocean")[1450:1550]
    write(folder, kind, texts)
    if set_back:  # as `rsync -t` and `cp -p` do
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    new = load(folder, kind)
    assert new.content_hash != old.content_hash
    tokens = set()
    for split in ("train", "validation"):
        again = TokenStore(new, split, tokenizer, length=32, packing="concatenate")
        for number in range(again.fill(10**9)["files"]):
            tokens |= set(again.file(number).ravel().tolist())
    assert tokens == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_elsewhere_is_the_same_corpus(tmp_path, kind, streaming):
    folder = write(tmp_path / "text", kind, lines(3000))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    assert len({load(tmp_path / name, kind).content_hash for name in ("text", "copy", "link")}) == 1


def test_files_are_hashed_again_only_after_a_change(tmp_path, monkeypatch):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.json.gz").write_bytes(gzip.compress(jsonl(lines(20 + i))))
    hashed, digest = [], file_hashes._digest
    monkeypatch.setattr(file_hashes, "_digest", lambda path, alive: hashed.append(path.name) or digest(path, alive))

    def count():
        hashed.clear()
        content = load(folder, "json.gz").content_hash
        return len(hashed), content

    assert count()[0] == 3
    assert count()[0] == 3  # too young for a change to show in its time stamp
    monkeypatch.setattr(file_hashes, "_YOUNG", 0)
    time.sleep(0.05)
    _, content = count()
    assert count() == (0, content)
    (folder / "1.json.gz").write_bytes(gzip.compress(jsonl(lines(30))))
    time.sleep(0.05)
    assert count()[0] == 1
    assert hashed == ["1.json.gz"]
    assert count()[0] == 0
    (index,) = cache_folder().glob("hashes-*.json")
    index.write_text("[]")
    assert count()[0] == 3


@pytest.mark.parametrize("kind", ["streamed jsonl", "json.gz", "parquet", "dataset"])
def test_text_that_changes_while_a_run_reads_it_is_refused(tmp_path, kind, streaming):
    folder = write(tmp_path / "text", kind, lines(3000))
    corpus = load(folder, kind)
    tokenizer = load_tokenizer(tiny(folder).data, corpus, silent)
    store = TokenStore(corpus, "train", tokenizer, length=32, packing="concatenate")
    blocks = store.fill(1)["blocks"]
    time.sleep(0.05)
    write(folder, kind, lines(3000, "ocean"))
    with pytest.raises(CorpusError, match="changed while it was being read"):
        store.fill(10**9)
    assert store.state()["blocks"] == blocks
    with pytest.raises(CorpusError, match="changed while it was being read"):
        train_tokenizer(corpus, 400, silent)


def test_tokenizers_that_encode_differently_share_no_tokens(tmp_path):
    corpus = load(write(tmp_path / "text", "jsonl", lines(50)), "jsonl")
    plain, lower = (word_level({"<end>": 0, "the": 1, "river": 2}) for _ in range(2))
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert plain.get_vocab() == lower.get_vocab()
    folders = {TokenStore(corpus, "train", t, length=8, packing="concatenate").folder for t in (plain, lower)}
    assert len(folders) == 2


def test_tokenizers_written_in_python_are_told_apart():
    assert encoding_hash(ByT5Tokenizer()) == encoding_hash(ByT5Tokenizer())
    assert encoding_hash(ByT5Tokenizer()) != encoding_hash(ByT5Tokenizer(extra_ids=10))


def word_level(vocabulary):
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>")


def test_ids_beyond_the_number_of_tokens_fit(tmp_path):
    corpus = load(write(tmp_path / "text", "jsonl", lines(50)), "jsonl")
    tokenizer = word_level({"<end>": 0, "the": 1, "river": 70_000})
    store = TokenStore(corpus, "train", tokenizer, length=8, packing="concatenate")
    store.fill(1)
    assert 70_000 in store.block(0)
    config = tiny("unused").model
    made = model_config(config, tokenizer=tokenizer, vocab_size=0, sequence_length=8)
    assert made.vocab_size == 70_001


HOW = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "null": lambda data: b"null",
    "nested": lambda data: b"[" * 5000,
    "other state": lambda data: data.replace(b'"blocks": ', b'"blocks": 9'),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shards"), "json.gz", lines(600))


@pytest.fixture(scope="module")
def whole_cache(shards, tmp_path_factory):
    """A cache with the tokenizer and the tokens of the shards."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole_cache")
        patch.setenv("RISHD_CACHE", str(folder))
        patch.setattr(token_store, "_TOKENS_PER_FILE", 1 << 11)
        read_all(shards)
    return folder


def read_all(folder):
    corpus = load(folder, "json.gz")
    tokenizer = load_tokenizer(tiny(folder).data, corpus, silent)
    store = TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")
    files = store.fill(10**9)["files"]
    return tokenizer.backend_tokenizer.to_str(), [store.file(i).tolist() for i in range(files)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "which", ["tokens-*/000000.npy", "tokens-*/000002.npy", "tokens-*/state.json", "tokenizer-*.json"]
)
def test_whatever_is_damaged_in_the_cache_is_made_again(shards, whole_cache, which, how, caplog):
    shutil.copytree(whole_cache, cache_folder())
    expected = read_all(shards)
    assert len(expected[1]) > 3
    (path,) = cache_folder().glob(which)
    good = path.read_bytes()
    bad = HOW[how](good)
    path.unlink()
    if bad is not None:
        path.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert within(60, read_all, shards) == expected
    assert (str(path) in caplog.text) == (bad != good and (bad is not None or path.suffix == ".npy"))
    caplog.clear()
    assert read_all(shards) == expected  # once is enough
    assert not caplog.text


def other_file(name):
    """A file of the cache that replaces another one of the same form; only its path says which one it is."""
    cache = cache_folder()
    train, validation = sorted(cache.glob("tokens-*"), key=lambda folder: -len(list(folder.glob("*.npy"))))
    return {
        "tokens of another number": (train / "000001.npy", train / "000000.npy"),
        "tokens of another store": (validation / "000000.npy", train / "000000.npy"),
        "state of another store": (validation / "state.json", train / "state.json"),
        "another tokenizer": (cache / "other" / "tokenizer.json", next(cache.glob("tokenizer-*.json"))),
    }[name]


@pytest.mark.parametrize(
    "which", ["tokens of another number", "tokens of another store", "state of another store", "another tokenizer"]
)
def test_a_file_in_the_place_of_another_is_made_again(shards, which, caplog):
    corpus, tokenizer = load(shards, "json.gz"), load_tokenizer(tiny(shards).data, load(shards, "json.gz"), silent)
    TokenStore(corpus, "validation", tokenizer, length=16, packing="concatenate").fill(10**9)
    expected = read_all(shards)
    (cache_folder() / "other").mkdir()
    write_record(cache_folder() / "other" / "tokenizer.json", {"tokenizer": Tokenizer(models.BPE()).to_str()})
    source, path = other_file(which)
    assert source.read_bytes() != path.read_bytes()
    shutil.copy(source, path)
    with caplog.at_level(logging.WARNING):
        assert within(60, read_all, shards) == expected
    assert f"{path} is damaged; it is made again" in caplog.text


def store_of(folder):
    corpus = load(folder, "json.gz")
    tokenizer = word_level({"<end>": 0, "the": 1, "river": 2})
    return TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")


@pytest.mark.parametrize("problem", [MemoryError, RuntimeError, KeyError, CorpusError, OSError])
def test_a_writer_that_dies_of_anything_is_replaced_by_whoever_waits(shards, problem):
    expected = store_of(shards)
    expected.fill(10**9)
    blocks = expected.file(1)
    shutil.rmtree(cache_folder())
    store = store_of(shards)
    encode, failing = store._encode, [True]

    def fail_once(texts):
        if failing and failing.pop():
            raise problem("once")
        return encode(texts)

    store._encode = fail_once
    store.fill_in_background(10**9).join(60)
    assert np.array_equal(within(60, store.file, 1), blocks)


def test_one_store_is_repaired_while_another_is_written(shards):
    """They read one corpus, each from its own position."""
    corpus = load(shards, "json.gz")
    tokenizer = word_level({"<end>": 0, "the": 1, "river": 2})
    train, validation = (
        TokenStore(corpus, split, tokenizer, length=16, packing="concatenate") for split in ("train", "validation")
    )
    train.fill(10**9)
    expected = [train.file(i) for i in range(train.state()["files"])]
    validation.fill(1)
    shutil.rmtree(train.folder)
    again = TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")
    encode = again._encode

    def damage_and_repair(texts):
        validation._path(0).write_bytes(b"")
        validation._open = None
        validation.file(0)
        return encode(texts)

    again._encode = damage_and_repair
    blocks = 0
    while not again.state()["complete"]:
        blocks = again.fill(blocks + 1)["blocks"]
    assert all(np.array_equal(again.file(i), file) for i, file in enumerate(expected))


def test_blocks_that_nobody_writes_are_written_by_whoever_reads_them(shards):
    store = store_of(shards)
    files = store.fill(1)["files"]
    assert len(within(60, store.file, files))
    with pytest.raises(CorpusError, match="has only"):
        within(60, store.file, 10**6)


def use_the_store(folder):
    store_of(folder).fill(1)


def use_the_tokenizer(folder):
    train_tokenizer(load(folder, "json.gz"), 400, silent)


def use_the_hashes(folder):
    load(folder, "json.gz")


def repair_the_store(folder):
    store = store_of(folder)
    store.file(0)


@pytest.mark.parametrize("use", [use_the_store, use_the_tokenizer, use_the_hashes, repair_the_store])
def test_waiting_for_a_hung_process_is_said_and_ends(shards, use, monkeypatch, caplog):
    if use is repair_the_store:
        store = store_of(shards)
        store.fill(10**9)
        store._path(0).unlink()
    if use is not use_the_hashes:
        monkeypatch.setattr(file_hashes, "_YOUNG", 0)
        load(shards, "json.gz")
    monkeypatch.setattr(cache_module, "_QUIET", 0.0)
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.3)
    held = []
    lock = cache_module.fcntl.flock

    def hung(stream, operation):  # as if another process held it
        held.append(stream.name)
        raise BlockingIOError

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(cache_module.fcntl, "flock", hung)
        with pytest.raises(
            (CacheError, CorpusError), match=r"holds .*lock to .* and has made no progress for 0 s; end it"
        ):
            within(60, use, shards)
    assert "waiting for" in caplog.text
    assert cache_module.fcntl.flock is lock
    within(60, use, shards)


@pytest.mark.parametrize("makes_progress", [True, False])
def test_a_process_is_waited_for_as_long_as_it_makes_progress(tmp_path, monkeypatch, makes_progress):
    lock, tries = cache_module.fcntl.flock, iter(range(50))

    def held(stream, operation):
        count = next(tries, None)
        if count is None:
            return lock(stream, operation)
        if makes_progress:
            os.utime(stream.fileno(), ns=(count, count))
        raise BlockingIOError

    clock = itertools.count(step=cache_module._PATIENCE / 5)
    monkeypatch.setattr(cache_module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cache_module, "_POLL", 0.0)
    monkeypatch.setattr(cache_module.fcntl, "flock", held)
    with nullcontext() if makes_progress else pytest.raises(CacheError), locked(tmp_path / "lock", "to test"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_lock_ends_with_its_block_though_a_child_was_forked(tmp_path):
    ours, theirs = os.pipe()
    with locked(tmp_path / "lock", "to test"):
        child = os.fork()
        if child == 0:  # a worker of a data loader, say
            os.read(ours, 1)
            os._exit(0)

    def lock_again():
        with locked(tmp_path / "lock", "to test"):
            return True

    try:
        assert within(20, lock_again)
    finally:
        os.write(theirs, b".")
        os.waitpid(child, 0)


def test_a_record_is_what_was_written(tmp_path):
    written = {"a": [1, "ü", None], "b": {"d": 0.1, "c": True}}
    write_record(tmp_path / "record.json", written)
    assert read_record(tmp_path / "record.json") == written
