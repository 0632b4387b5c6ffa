"""From text to blocks: tokenizers, the store that is written in advance, packing, and corpora that are too small."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch

from rishd.pretraining import corpus as corpus_module
from rishd.pretraining import token_store
from rishd.pretraining.blocks import IGNORED, TokenBlocks, make_collator, training_blocks, validation_blocks
from rishd.pretraining.cache import FORMAT, locked
from rishd.pretraining.config import DataConfig
from rishd.pretraining.config_files import override
from rishd.pretraining.corpus import load_corpus
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.token_store import TokenStore
from rishd.pretraining.tokenizer import END_OF_TEXT, TokenizerError, load_tokenizer, named_tokenizer
from tests.rishd.runs import tiny, write_text
from tests.rishd.test_corpus import corpus_of, write_c4


def silent(what, done, total):
    pass


@pytest.fixture
def corpus(text):
    return corpus_of(text)


@pytest.fixture
def tokenizer(text, corpus):
    return load_tokenizer(tiny(text).data, corpus, silent)


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(token_store, "_TOKENS_PER_FILE", 1 << 12)


def whole(store):
    state = store.fill(10**9)
    return np.concatenate([store.file(i) for i in range(state["files"])])


def test_blocks_decode_to_the_text_end_to_end(corpus, tokenizer, small_files):
    store = TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")
    decoded = tokenizer.decode(whole(store).ravel().tolist())
    text = "".join(t + END_OF_TEXT for t in corpus.texts("train"))
    assert text.startswith(decoded)
    assert len(text) - len(decoded) < 16 * 10


def test_truncated_blocks_are_one_document_each(corpus, tokenizer):
    blocks = whole(TokenStore(corpus, "train", tokenizer, length=64, packing="truncate"))
    texts = list(corpus.texts("train"))
    assert len(blocks) == len(texts)
    for block, text in zip(blocks, texts, strict=True):
        ids = tokenizer(text)["input_ids"][:64]
        assert block[: len(ids)].tolist() == ids
        assert (block[len(ids) :] == tokenizer.eos_token_id).all()


def test_a_tokenizer_and_a_store_are_made_once(text, corpus, tokenizer, cache, monkeypatch):
    TokenStore(corpus, "train", tokenizer, length=48, packing="concatenate").fill(10)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}

    def again(*_):
        raise AssertionError("made again")

    load_tokenizer(tiny(text).data, corpus, again)
    TokenStore(corpus, "train", tokenizer, length=48, packing="concatenate", progress=again).fill(10)
    assert files == {path: path.stat().st_mtime_ns for path in cache.rglob("*")}


def test_a_cache_is_left_behind_by_whoever_changes_what_it_would_have(tmp_path, small_files):
    """If this fails, corpora are split, ordered or encoded differently: raise the cache's format with the digest."""
    digest = hashlib.sha256()
    for folder in (write_text(tmp_path / "text"), write_c4(tmp_path / "c4")):  # held in memory, and streamed
        corpus = corpus_of(folder, validation_share=0.1)
        for part in ("train", "validation"):
            digest.update(json.dumps(list(corpus.texts(part))).encode())
        tokenizer = load_tokenizer(tiny(folder).data, corpus, silent)
        for packing in ("concatenate", "truncate"):
            digest.update(whole(TokenStore(corpus, "train", tokenizer, length=16, packing=packing)).tobytes())
    assert (FORMAT, digest.hexdigest()[:16]) == (4, "fb041611e560f130")


def test_writing_in_parts_gives_the_same_blocks(text, tmp_path, tokenizer, small_files, monkeypatch):
    for folder in (text, write_c4(tmp_path / "c4", count=400)):
        monkeypatch.setenv("RISHD_CACHE", str(tmp_path / f"{folder.name}-whole"))
        expected = whole(TokenStore(corpus_of(folder), "train", tokenizer, length=16, packing="concatenate"))
        monkeypatch.setenv("RISHD_CACHE", str(tmp_path / f"{folder.name}-parts"))
        for wanted in (1, 600, 601):
            store = TokenStore(corpus_of(folder), "train", tokenizer, length=16, packing="concatenate")
            assert not store.fill(wanted)["complete"]
        assert np.array_equal(whole(store), expected)


def test_another_share_held_back_is_another_store(tmp_path, tokenizer):
    """And another tokenizer, since it is trained on the training part."""
    folder = write_c4(tmp_path / "c4", count=400)
    found = {}
    for share in (0.02, 0.5):
        corpus = load_corpus(DataConfig(paths=(str(folder),), validation_share=share))
        parts = [set(corpus.texts(split)) for split in ("train", "validation")]
        stores = [
            TokenStore(corpus, split, tokenizer, length=64, packing="truncate") for split in ("train", "validation")
        ]
        assert [len(whole(store)) for store in stores] == [len(part) for part in parts]
        found[share] = {store.folder for store in stores}
    assert not found[0.02] & found[0.5]


def test_a_writer_that_failed_may_try_again(text, tokenizer, small_files, monkeypatch, tmp_path):
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    corpus = corpus_of(text)
    read = corpus.texts
    corpus.texts = lambda split, position=None: raising(read(split, position), after=3)
    store = TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")
    store.fill_in_background(10).join()
    with pytest.raises(CorpusError, match="ends early: the network is gone"):
        store.block(0)
    store.corpus.texts = read
    assert store.block(0).shape == (16,)


def raising(texts, after):
    for i, text in enumerate(texts):
        if i == after:
            raise CorpusError("the network is gone")
        yield text


def test_a_killed_writer_is_replaced_by_a_waiting_one(text, tmp_path, small_files, monkeypatch):
    tokenizer = load_tokenizer(tiny(text).data, corpus_of(text), silent)
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "expected"))
    expected = whole(TokenStore(corpus_of(text), "train", tokenizer, length=16, packing="concatenate"))
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    store = TokenStore(corpus_of(text), "train", tokenizer, length=16, packing="concatenate")
    writer = os.fork()
    if writer == 0:
        encode = store._encode

        def slow(texts):
            while store.state()["files"]:  # until it is killed
                time.sleep(0.1)
            return encode(texts)

        store._encode = slow
        try:
            store.fill(10**9)
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 600
        while store.state()["files"] < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not store.state()["complete"]
        thread = store.fill_in_background(10**9)  # waits for the lock
        time.sleep(0.1)
        assert thread.is_alive()
        os.kill(writer, signal.SIGKILL)
        last = len(expected) - 1
        assert np.array_equal(store.block(last), expected[last])
        thread.join(600)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert np.array_equal(whole(store), expected)


def test_whoever_waits_is_told_how_far_the_writer_is(corpus, tokenizer, small_files):
    told = []
    store = TokenStore(
        corpus, "train", tokenizer, length=40, packing="concatenate", progress=lambda *progress: told.append(progress)
    )
    blocks = store.fill(1)["blocks"]
    told.clear()
    thread = threading.Thread(target=store.fill, args=(10**9,), daemon=True)
    with locked(store.folder / "lock", "to encode train text"):
        thread.start()
        deadline = time.monotonic() + 600
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.state()["blocks"] == blocks
    thread.join(600)
    assert told[0] == ("encoding train text", blocks, 10**9)
    assert store.state()["complete"]


def test_a_seed_orders_the_blocks_and_epochs_repeat_all_of_them(corpus, tokenizer, small_files):
    store = TokenStore(corpus, "train", tokenizer, length=16, packing="concatenate")
    count = store.fill(10**9)["blocks"]
    expected = sorted(map(tuple, whole(store)))
    first, again, other = (TokenBlocks(store, 2 * count, seed, available=count) for seed in (0, 0, 1))
    rows = [tuple(first[i]) for i in range(2 * count)]
    assert rows == [tuple(again[i]) for i in range(2 * count)]
    assert rows[:count] != rows[count:]
    assert rows[:50] != [tuple(other[i]) for i in range(50)]
    assert sorted(rows[:count]) == sorted(rows[count:]) == expected


def test_packed_labels_and_positions():
    ids = np.array([[5, 6, 0, 7, 8, 9, 0, 4], [1, 2, 3, 4, 5, 6, 7, 8]])
    separate = make_collator("separate", 0)(list(ids))
    assert separate["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], list(range(8))]
    assert separate["labels"].tolist() == [[IGNORED, 6, 0, IGNORED, 8, 9, 0, IGNORED], [IGNORED, 2, 3, 4, 5, 6, 7, 8]]
    flat = make_collator("separate", 0, flatten=True)(list(ids))
    assert all(torch.equal(flat[key].ravel(), separate[key].ravel()) for key in separate)
    assert flat["input_ids"].shape == (1, 16)
    concatenated = make_collator("concatenate", 0)(list(ids))
    assert torch.equal(concatenated["labels"], concatenated["input_ids"])
    assert "position_ids" not in concatenated
    truncated = make_collator("truncate", 0)([np.array([5, 6, 0, 0]), np.array([1, 2, 3, 4])])
    assert truncated["labels"].tolist() == [[5, 6, 0, IGNORED], [1, 2, 3, 4]]


@pytest.mark.parametrize("preset", ["9M", "moe-tiny"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_document_sees_its_neighbours(preset, attention):
    from rishd.pretraining.models import build_model, model_config

    config = override(tiny("unused"), {"model.preset": preset, "model.attention": attention})
    torch.manual_seed(0)
    made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=16)
    model = build_model(config, made).eval()
    documents = [[5, 6, 7, 0], [8, 9, 10, 11, 12, 0], [13, 14, 15, 16, 17, 18]]
    block = np.array([[*documents[0], *documents[1], *documents[2]]])
    for flatten in (False, True):
        inputs = make_collator("separate", 0, flatten=flatten)(list(np.concatenate([block[:, ::-1], block])))
        inputs.pop("labels")
        packed = model(**inputs).logits.reshape(2, 16, -1)[1].split([len(d) for d in documents])
        for logits, document in zip(packed, documents, strict=True):
            alone = model(input_ids=torch.tensor([document])).logits[0]
            assert torch.allclose(logits, alone, atol=1e-5)
    together = model(input_ids=torch.tensor(block)).logits[0].split([len(d) for d in documents])
    assert not torch.allclose(together[1], packed[1], atol=1e-3)  # packing without that option


def test_a_corpus_too_small_says_what_it_has(text, corpus, tokenizer):
    config = tiny(text, {"training.steps": 10**5})
    with pytest.raises(
        CorpusError, match=r"asks for 3,200,000 tokens \(100000 steps of 32\), and .* has [\d,]+ in"
    ) as told:
        training_blocks(config, corpus, tokenizer, silent)
    epochs = int(str(told.value).split("data.epochs = ")[1].rstrip("."))
    blocks = training_blocks(override(config, {"data.epochs": epochs}), corpus, tokenizer, silent)
    assert len(blocks[len(blocks) - 1]) == 16
    with pytest.raises(CorpusError, match=f"and {epochs - 1} passes over"):
        training_blocks(override(config, {"data.epochs": epochs - 1}), corpus, tokenizer, silent)
    with pytest.raises(CorpusError, match=r"held back for validation have [\d,]+ tokens"):
        validation_blocks(override(config, {"evaluation.tokens": 10**6}), corpus, tokenizer, silent)


@pytest.fixture
def large_corpus(tmp_path, small_files, monkeypatch):
    """Shards whose first bytes allow an estimate of their tokens, as some megabytes do for C4."""
    monkeypatch.setattr(corpus_module, "_TELLING", 5_000)
    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    return write_c4(tmp_path / "c4", shards=40, count=100)


def test_the_size_of_a_stream_is_guessed_before_and_counted_where_it_matters(large_corpus, tokenizer):
    def blocks(count):
        shutil.rmtree(os.environ["RISHD_CACHE"], ignore_errors=True)
        return training_blocks(
            tiny(large_corpus, {"training.steps": count // 2}), corpus_of(large_corpus), tokenizer, silent
        )

    count = len(whole(TokenStore(corpus_of(large_corpus), "train", tokenizer, length=16, packing="concatenate")))
    with pytest.raises(CorpusError, match="has about"):
        blocks(3 * count)
    with pytest.raises(CorpusError, match=rf"has {count * 16:,} in"):
        blocks(count + 2)
    few = blocks(count // 2)
    assert not few.store.state()["complete"]  # written while the run reads
    rows = [few[i].tolist() for i in range(len(few))]
    again = training_blocks(tiny(large_corpus, {"training.steps": count // 4}), few.store.corpus, tokenizer, silent)
    assert rows == [again[i].tolist() for i in range(len(again))]


def test_a_shard_that_breaks_is_named_when_the_run_gets_there(large_corpus, tokenizer):
    broken = sorted(large_corpus.iterdir())[22]
    broken.write_bytes(broken.read_bytes()[:-50])
    blocks = training_blocks(tiny(large_corpus, {"training.steps": 2900}), corpus_of(large_corpus), tokenizer, silent)
    with pytest.raises(CorpusError, match=broken.name):
        [blocks[i] for i in range(len(blocks))]


def test_tokenizers_by_folder(text, corpus, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = named_tokenizer(override(tiny(text), {"data.tokenizer": str(tmp_path / "tokenizer")}).data)
    assert loaded("a river")["input_ids"] == tokenizer("a river")["input_ids"]
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        named_tokenizer(override(tiny(text), {"data.tokenizer": str(tmp_path / "missing")}).data)
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        named_tokenizer(override(tiny(text), {"data.tokenizer": str(tmp_path / "tokenizer")}).data)
