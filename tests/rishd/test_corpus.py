"""Corpora: splits, published formats, corrupt files, and corpora that are too small."""

import gzip
import json
import shutil
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets.data_files import DataFilesList

from rishd.pretraining import corpus as corpus_module
from rishd.pretraining.blocks import left_out, training_blocks, validation_blocks
from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import CorpusInMemory, load_corpus
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.tokenizer import load_tokenizer
from tests.rishd.runs import tiny, write_text


def corpus_of(*paths, **settings):
    return load_corpus(DataConfig(paths=tuple(str(path) for path in paths), **settings))


def documents(first, count):
    return [f"document {i}: the river {i * i} meets the valley" for i in range(first, first + count)]


def lines_like_c4(texts):
    return "".join(
        json.dumps({"text": t, "timestamp": "2019-04-25T12:57:54Z", "url": "http://x.org"}) + "\n" for t in texts
    )


def lines_like_the_pile(texts):
    return "".join(json.dumps({"text": t, "meta": {"pile_set_name": "ArXiv"}}) + "\n" for t in texts)


def write_c4(folder, shards=3, count=100):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        data = lines_like_c4(documents(i * count, count)).encode()
        (folder / f"c4-train.{i:05}-of-{shards:05}.json.gz").write_bytes(gzip.compress(data))
    return folder


def write_pile(folder, shards=3, count=100):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        data = lines_like_the_pile(documents(i * count, count)).encode()
        half = data.index(b"\n", len(data) // 2) + 5  # frames end in the middle of lines
        frames = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
        (folder / f"{i:02}.jsonl.zst").write_bytes(frames)
    return folder


def test_parts_share_no_text_and_never_change(tmp_path):
    text = write_text(tmp_path / "text")
    shutil.copy(text / "000.txt", text / "copy.txt")  # a duplicate stays on one side
    corpus = corpus_of(text, validation_share=0.3)
    train, validation = list(corpus.texts("train")), list(corpus.texts("validation"))
    assert len(train) + len(validation) == 201
    assert len(validation) > 30
    assert not set(train) & set(validation)
    again = corpus_of(text, validation_share=0.3)
    assert again.content_hash == corpus.content_hash
    assert list(again.texts("train")) == train
    (text / "new.txt").write_text("one more")  # no other document moves
    assert set(validation) <= {*corpus_of(text, validation_share=0.3).texts("validation")}


@pytest.mark.parametrize("write", [write_c4, write_pile])
def test_published_shards_are_streamed_in_order(tmp_path, write):
    corpus = corpus_of(write(tmp_path / "shards"), validation_share=0.2)
    assert corpus.is_streamed
    train, validation = list(corpus.texts("train")), list(corpus.texts("validation"))
    assert sorted(train + validation) == sorted(documents(0, 300))
    assert train == sorted(train, key=lambda text: int(text.split()[1].rstrip(":")))
    assert len(validation) > 20


@pytest.mark.parametrize("write", [write_text, write_c4, write_pile])
def test_reading_goes_on_from_any_position(tmp_path, write):
    corpus = corpus_of(write(tmp_path / "data"))
    whole = list(corpus.texts("train"))
    for taken in (1, 57, 150, len(whole)):
        texts = corpus.texts("train")
        first = [next(texts) for _ in range(taken)]
        position = json.loads(json.dumps(corpus.position()))
        rest = list(corpus_of(tmp_path / "data").texts("train", position))
        assert first + rest == whole


def test_data_sets_by_name_are_streamed_and_continued(tmp_path):
    folder = write_pile(tmp_path / "set")
    config = DataConfig(dataset=str(folder), validation_share=0.2)
    corpus = load_corpus(config)
    train, validation = list(corpus.texts("train")), list(corpus.texts("validation"))
    assert sorted(train + validation) == sorted(documents(0, 300))
    assert train == list(corpus_of(folder, validation_share=0.2).texts("train"))  # the same text in both ways
    texts = corpus.texts("train")
    first = [next(texts) for _ in range(130)]
    position = json.loads(json.dumps(corpus.position()))
    continued = load_corpus(config)
    assert first + list(continued.texts("train", position)) == train
    assert list(continued.texts("validation")) == validation  # from its beginning, even after a continued read


@pytest.mark.parametrize("number", [1, 2])  # the library itself opens no data set whose first shard is broken
@pytest.mark.parametrize("how", ["cut", "flipped", "alien"])
def test_a_broken_shard_of_a_data_set_is_named_and_stops_or_is_left_out(tmp_path, how, number):
    folder = write_c4(tmp_path / "set")
    damage(sorted(folder.iterdir())[number], how)
    with pytest.raises(CorpusError, match=rf"shard {number + 1} of 3: .*data.on_corrupt = skip"):
        list(load_corpus(DataConfig(dataset=str(folder))).texts("train"))
    corpus = load_corpus(DataConfig(dataset=str(folder), on_corrupt="skip"))
    read = {*corpus.texts("train"), *corpus.texts("validation")}
    whole = {*documents(0, 300)} - {*documents(100 * number, 100)}
    assert whole <= read
    assert len(read) < 300
    assert f"shard {number + 1} of 3" in corpus.skipped[0]


class NotInCacheError(FileNotFoundError, ValueError):
    """Like huggingface_hub's LocalEntryNotFoundError, raised when the network is gone."""


@pytest.mark.parametrize("problem", [ConnectionError("no route to host"), NotInCacheError("no route to host")])
def test_a_data_set_out_of_reach_is_no_corrupt_one(tmp_path, monkeypatch, problem):
    corpus = load_corpus(DataConfig(dataset=str(write_c4(tmp_path / "set")), on_corrupt="skip"))
    texts = corpus.texts("train")
    first = [next(texts) for _ in range(130)]

    class OutOfReach:
        def __iter__(self):
            raise problem

        def load_state_dict(self, state):
            pass

        def state_dict(self):
            return {}

    position = corpus.position()
    with monkeypatch.context() as patch:
        patch.setattr(type(corpus._unread), "shard", lambda self, count, index: OutOfReach())
        with pytest.raises(CorpusError, match=r"cannot be read further: .*: no route to host; start again"):
            list(corpus.texts("train", position))
    assert corpus.skipped == []
    assert first + list(corpus.texts("train", position)) == list(corpus.texts("train"))


def test_data_sets_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="cannot be read"):
        load_corpus(DataConfig(dataset=str(tmp_path / "missing")))
    with pytest.raises(CorpusError, match="no text in 'body', but columns text, meta"):
        load_corpus(DataConfig(dataset=str(write_pile(tmp_path / "set")), text_field="body"))


def damage(path, how):
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: 2 * len(data) // 3])
    elif how == "flipped":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 255]) + data[-19:])
    else:
        path.write_bytes(b"not compressed at all")


@pytest.mark.parametrize("how", ["cut", "flipped", "alien"])
@pytest.mark.parametrize("write", [write_c4, write_pile])
def test_a_broken_shard_is_named_and_stops_or_is_left_out(tmp_path, write, how):
    folder = write(tmp_path / "shards")
    broken = sorted(folder.iterdir())[1]
    damage(broken, how)
    with pytest.raises(CorpusError, match=rf"{broken.name}(, line \d+:| is broken) .*data.on_corrupt = skip"):
        list(corpus_of(folder).texts("train"))
    corpus = corpus_of(folder, on_corrupt="skip")
    read = {*corpus.texts("train"), *corpus.texts("validation")}
    assert {*documents(0, 100), *documents(200, 100)} <= read
    assert len(read) < 300
    assert any(broken.name in line for line in corpus.skipped)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "expected an object with"),
        ('{"body": 1}', "expected an object with"),
        ('{"text": 3}', "is int, expected a string"),
        ('{"text": null}', "is NoneType, expected a string"),
        ("[]", "expected an object with"),
        ('"text"', "expected an object with"),
        ('{"text": "x", "meta": ' + "[" * 3000 + "]" * 3000 + "}", "expected an object with"),
        ('{"text": "x", "meta": ' + '{"a":' * 3000 + "1" + "}" * 3001, "expected an object with"),
        ('{"text": "x", "number": ' + "9" * 5000 + "}", "expected an object with"),
        ('{"text": "caf\xe9"}', "byte 0xe9 is not UTF-8"),
        ("\0\1\2\xff", "is not UTF-8"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "A.JSONL", "A.JSON.GZ"])  # in memory, and streamed
def test_a_malformed_line_is_named_and_stops_or_is_left_out(tmp_path, name, line, message):
    body = lines_like_c4(documents(0, 50)) + line + "\n" + lines_like_c4(documents(50, 50))
    data = body.encode("latin1")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    with pytest.raises(CorpusError, match=rf"{name}, line 51: .*{message}") as told:
        list(corpus_of(tmp_path / name).texts("train"))
    assert len(str(told.value)) < 500
    corpus = corpus_of(tmp_path / name, on_corrupt="skip")
    assert len(list(corpus.texts("train"))) + len(list(corpus.texts("validation"))) == 100
    assert "line 51" in corpus.skipped[0]


def test_many_malformed_lines_are_counted_out_not_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text("no json\n" * 1000 + lines_like_c4(documents(0, 5)))
    skipped = corpus_of(tmp_path, on_corrupt="skip").skipped
    assert len(skipped) == 11
    assert skipped[-1].endswith("more such lines")


@pytest.mark.parametrize("content", [b"caf\xe9 on the river\n", "river".encode("utf-16"), bytes(range(256))])
def test_text_that_is_not_utf8_is_named_and_stops_or_is_left_out(tmp_path, content):
    text = write_text(tmp_path / "text", files=5)
    (text / "odd.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=r"odd\.txt.*(not UTF-8; convert text|NUL bytes).*data\.on_corrupt = skip"):
        corpus_of(text)
    corpus = corpus_of(text, on_corrupt="skip")
    assert len(corpus.documents) == 5
    assert "odd.txt" in corpus.skipped[0]


@pytest.mark.parametrize(("name", "write"), [("a.txt", str), ("a.jsonl", lambda text: json.dumps({"text": text}))])
def test_a_byte_order_mark_is_no_text(tmp_path, name, write):
    (tmp_path / name).write_text(write("the first"), encoding="utf-8-sig")
    (tmp_path / f"b{name}").write_text(write("the second"))
    assert sorted(d.text for d in corpus_of(tmp_path).documents) == ["the first", "the second"]


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_is_read_row_by_row(tmp_path, name, kind):
    texts = documents(0, 1000)
    column = pa.array([None, *texts, "  "], type=kind)
    pq.write_table(pa.table({"id": range(1002), "text": column}), tmp_path / name, row_group_size=300)
    for path in (tmp_path, tmp_path / name):
        corpus = corpus_of(path, validation_share=0.2)
        train, validation = list(corpus.texts("train")), list(corpus.texts("validation"))
        assert sorted(train + validation) == sorted(texts)
        reading = corpus.texts("train")
        first = [next(reading) for _ in range(500)]
        assert first + list(corpus_of(path, validation_share=0.2).texts("train", corpus.position())) == train


@pytest.mark.parametrize("how", ["cut", "head", "empty", "alien", "field", "type"])
def test_parquet_that_cannot_be_read_is_named_and_stops_or_is_left_out(tmp_path, how):
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": documents(0, 50)}), good)
    bad.write_bytes(good.read_bytes())
    if how == "cut":
        bad.write_bytes(good.read_bytes()[:-100])
    elif how == "head":
        bad.write_bytes(good.read_bytes()[:4] + bytes(200) + good.read_bytes()[204:])
    elif how in {"empty", "alien"}:
        bad.write_bytes(b"" if how == "empty" else b"not Parquet at all")
    else:
        pq.write_table(pa.table({"body": ["x"]} if how == "field" else {"text": [1]}), bad)
    with pytest.raises(
        CorpusError, match=r"b\.parquet.*(is broken|no column 'text', but body|is int64).*data\.on_corr"
    ):
        list(corpus_of(tmp_path).texts("train"))
    corpus = corpus_of(tmp_path, on_corrupt="skip")
    assert {*corpus.texts("train"), *corpus.texts("validation")} == {*documents(0, 50)}
    assert "b.parquet" in corpus.skipped[0]


def test_files_of_other_kinds_are_said_to_be_ignored(tmp_path):
    text = write_text(tmp_path / "text", files=3)
    assert corpus_of(text).warning == ""
    for name in ("a.json", "b.JSON", "c.png", "notes", ".hidden"):
        (text / name).write_text("{}")
    assert "4 files that are not known as text (2 .json, 1 .png, 1 without ending)" in corpus_of(text).warning
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.json").write_text(lines_like_c4(documents(0, 5)))
    with pytest.raises(CorpusError, match=r"no text but 1 \.json.*read if they are named, or as data\.dataset"):
        corpus_of(only)
    assert len(corpus_of(only / "a.json").documents) == 5
    (only / "a.json").write_text(json.dumps([{"text": text} for text in documents(0, 5)], indent=1))
    with pytest.raises(CorpusError, match=r"a\.json, line 1: .*one JSON array as data\.dataset"):
        corpus_of(only / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_what_is_left_out_is_what_the_text_lacks_now(tmp_path, monkeypatch, name):
    """Independently of the cache: a repaired line is no longer reported, a newly broken one is."""
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))

    def lacking(line):
        body = (lines_like_c4(documents(0, 50)) + line + "\n" + lines_like_c4(documents(50, 50))).encode()
        (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith("gz") else body)
        config = tiny(tmp_path / name, {"data.on_corrupt": "skip", "data.validation_share": 0.2})
        corpus = load_corpus(config.data)
        tokenizer = load_tokenizer(config.data, corpus, lambda what, done, total: None)
        parts = [
            blocks(config, corpus, tokenizer, lambda what, done, total: None)
            for blocks in (training_blocks, validation_blocks)
        ]
        return left_out(corpus, *parts)

    for _ in range(2):
        assert lacking("") == []  # the same documents as with a line that is left out
        for _ in range(2):  # written, and from the cache
            assert "line 51" in " ".join(lacking("no json"))


def test_a_data_set_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    folder = write_c4(tmp_path / "set")
    local = datasets.load_dataset_builder(str(folder))

    def hash_at(commit, text_field="text"):
        files = DataFilesList([f"hf://datasets/a/b@{commit}/train.jsonl"], [("a/b", commit)])
        builder = SimpleNamespace(
            config=SimpleNamespace(data_files={"train": files}), as_streaming_dataset=local.as_streaming_dataset
        )
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
        corpus = load_corpus(DataConfig(dataset="a/b", text_field=text_field))
        assert "newest revision" in corpus.warning
        return corpus.content_hash

    assert hash_at("1") == hash_at("1") != hash_at("2")
    assert hash_at("1", "url") != hash_at("1")


def test_content_hash_sees_every_change(tmp_path):
    text = write_text(tmp_path / "text")
    before = corpus_of(text).content_hash
    assert corpus_of(shutil.copytree(text, tmp_path / "copy")).content_hash == before
    (text / "000.txt").write_text("changed")
    assert corpus_of(text).content_hash != before
    folder = write_c4(tmp_path / "c4")
    before = corpus_of(folder).content_hash
    damage(sorted(folder.iterdir())[0], "flipped")
    assert corpus_of(folder).content_hash != before


def test_default_corpus_is_the_recorded_one():
    corpus = load_corpus()
    assert corpus.content_hash == corpus_module.PINNED_HASH
    assert not corpus.warning
    assert sum(len(document.text) for document in corpus.documents) > 50e6


def test_another_default_corpus_is_said(monkeypatch):
    monkeypatch.setattr(corpus_module, "PACKAGES", ("sympy",))
    assert "other package versions are installed" in load_corpus().warning


def test_plain_jsonl_and_long_files_are_held_in_memory(tmp_path):
    (tmp_path / "shard.jsonl").write_text(lines_like_the_pile(documents(0, 150)) + "\n\n")
    corpus = corpus_of(tmp_path / "shard.jsonl")
    assert isinstance(corpus, CorpusInMemory)
    assert len(corpus.documents) == 150
    (tmp_path / "long.txt").write_text("".join(f"line {i} of text\n" for i in range(600_000)))
    assert len(corpus_of(tmp_path / "long.txt").documents) > 100
    (tmp_path / "short.txt").write_text("".join(f"line {i} of text\n" for i in range(10_000)))
    assert len(list(corpus_of(tmp_path / "short.txt").texts("validation"))) == 1
    (tmp_path / "odd.jsonl").write_text('{"text": "\\ud800 lone"}\n{"text": "fine"}\n')
    assert len(corpus_of(tmp_path / "odd.jsonl").documents) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ({}, "holds no text"),
        ({"a.txt": ""}, "holds no text"),
        ({"a.txt": "one document only"}, "too few to hold one back"),
        ({"a.txt": "the same", "b.txt": "the same"}, "too few to hold one back"),
        ({"a.txt": "x\0y"}, "not a text file"),
        ({"a.jsonl": '{"text": "x"}\n{"body": 1}\n'}, r"a\.jsonl, line 2: expected an object with"),
    ],
)
def test_bad_corpora_are_refused(tmp_path, content, message):
    folder = tmp_path / "corpus"
    if content is not None:
        folder.mkdir()
        for name, body in content.items():
            (folder / name).write_text(body)
    with pytest.raises(CorpusError, match=message):
        corpus_of(folder)
