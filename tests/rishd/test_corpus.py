"""Corpora: splits, formats as published, corrupt files, and what is too small."""

import gzip
import json
import shutil

import pytest
import zstandard

from rishd.pretraining import corpus as corpus_module
from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import CorpusInMemory, load_corpus
from rishd.pretraining.text_files import CorpusError
from tests.rishd.runs import write_text


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
    (text / "new.txt").write_text("one more")  # moves no other document
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
    assert train == list(corpus_of(folder, validation_share=0.2).texts("train"))  # the same text by either way
    texts = corpus.texts("train")
    first = [next(texts) for _ in range(130)]
    position = json.loads(json.dumps(corpus.position()))
    continued = load_corpus(config)
    assert first + list(continued.texts("train", position)) == train
    assert list(continued.texts("validation")) == validation  # from its beginning, whatever was continued before


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
    ],
)
def test_a_malformed_line_is_named_and_stops_or_is_left_out(tmp_path, line, message):
    body = lines_like_c4(documents(0, 50)) + line + "\n" + lines_like_c4(documents(50, 50))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(body.encode()))
    with pytest.raises(CorpusError, match=rf"a\.json\.gz, line 51: .*{message}"):
        list(corpus_of(tmp_path / "a.json.gz").texts("train"))
    corpus = corpus_of(tmp_path / "a.json.gz", on_corrupt="skip")
    assert len(list(corpus.texts("train"))) + len(list(corpus.texts("validation"))) == 100
    assert "line 51" in corpus.skipped[0]


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
        ({"a.txt": "x\0y"}, "no text file"),
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
