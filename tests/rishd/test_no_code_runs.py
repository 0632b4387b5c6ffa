"""The promises of SECURITY.md: text, tokenizers, configurations and models may carry code, and none of it runs."""

import ast
import builtins
import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import rishd
from rishd.pretraining.config import DataConfig
from rishd.pretraining.config_files import ConfigError, load_config, override
from rishd.pretraining.corpus import load_corpus
from rishd.pretraining.models import build_model, model_config
from rishd.pretraining.optimizers import optimizer_class
from rishd.pretraining.results import RECORD
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.tokenizer import TokenizerError, load_tokenizer, named_tokenizer
from rishd.probing.trained_model import load_checkpoint
from tests.rishd.runs import tiny, write_text
from tests.rishd.test_corpus import documents, lines_like_c4


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that the code below would write; a question on the terminal fails the test."""

    asked = []
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "n")
    path = tmp_path / "code has run"
    yield path
    assert not path.exists()
    assert not asked


def code(marker):
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: pass\n"


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_the_payload_works(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "written")))
    assert (tmp_path / "written").exists()
    exec(code(tmp_path / "touched"))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("known", [True, False])  # whether transformers has the class, too
def test_a_tokenizer_runs_no_code(tmp_path, marker, known):
    text = write_text(tmp_path / "text")
    corpus = load_corpus(tiny(text).data)
    folder = tmp_path / "tokenizer"
    load_tokenizer(tiny(text).data, corpus, lambda what, done, total: None).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
    settings["chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    if not known:
        settings["tokenizer_class"] = "Own"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(code(marker))
    config = override(tiny(text), {"data.tokenizer": str(folder)}).data
    if known:
        assert named_tokenizer(config)("a river")["input_ids"]
    else:
        with pytest.raises(TokenizerError, match=r"custom code|Own"):
            named_tokenizer(config)


@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_a_model_configuration_runs_no_code(tmp_path, marker, model_type):
    folder = tmp_path / "model"
    folder.mkdir()
    made = {"model_type": model_type, "auto_map": {key: "own.Own" for key in ("AutoConfig", "AutoModelForCausalLM")}}
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    (folder / "config.json").write_text(json.dumps({**made, **small, "vocab_size": 320}))
    (folder / "own.py").write_text(code(marker))
    config = override(tiny("unused"), {"model.config": str(folder)})

    def build():
        made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=16)
        return build_model(config, made)

    if model_type == "llama":
        assert type(build()).__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(ConfigError, match="own"):
            build()


def test_kernels_of_the_hub_are_refused():
    config = override(tiny("unused"), {"model.attention": "someone/kernel"})
    made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=16)
    with pytest.raises(ConfigError, match="whose code is not run"):
        build_model(config, made)


@pytest.mark.parametrize("name", ["set.py", "loader.py"])  # the first has the folder's name, as loading scripts had
def test_a_data_set_runs_no_code(tmp_path, marker, name):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines_like_c4(documents(0, 20)))
    (folder / name).write_text(code(marker))
    with pytest.raises(CorpusError, match="scripts are no longer supported") if name == "set.py" else nullcontext():
        corpus = load_corpus(DataConfig(dataset=str(folder)))
        assert sorted([*corpus.texts("train"), *corpus.texts("validation")]) == sorted(documents(0, 20))


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pt", "bin", "npy"])
@pytest.mark.parametrize("where", ["paths", "dataset"])
def test_pickled_data_is_not_loaded(tmp_path, marker, ending, where):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / f"train.{ending}").write_bytes(pickle.dumps(Payload(marker)))
    paths = (str(folder / f"train.{ending}"),)
    config = DataConfig(paths=paths) if where == "paths" else DataConfig(dataset=str(folder))
    with pytest.raises(CorpusError):
        load_corpus(config)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_a_run_configuration_runs_no_code(tmp_path, marker, tag):
    (tmp_path / "run.yaml").write_text(f"seed: {tag} [{str(marker)!r}]\n")
    with pytest.raises(ValueError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml", ())


def test_an_optimizer_is_imported_from_installed_modules_only(tmp_path, marker):
    """Importing its module does run the module's code, as SECURITY.md says: a file elsewhere is not a module."""
    (tmp_path / "own.py").write_text(code(marker))
    for name in ("own:Own", f"{tmp_path}/own:Own"):
        with pytest.raises(ValueError, match="cannot be imported"):
            optimizer_class(name)


def test_a_trained_model_runs_no_code(tmp_path, marker):
    folder = tmp_path / "model"
    made = AutoConfig.for_model(
        "llama", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=320
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(code(marker))
    (tmp_path / RECORD).write_text(
        json.dumps({"format": 1, "config": tiny("unused").to_mapping(), "corpus_hash": "unused"})
    )
    assert type(load_checkpoint(folder).model).__name__ == "LlamaForCausalLM"


# Calls that load other people's files, and the argument that keeps them from running code.
SAFE = {
    "from_pretrained": ("trust_remote_code", False),
    "from_config": ("trust_remote_code", False),
}
FORBIDDEN = {(None, "eval"), (None, "exec"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
FORBIDDEN |= {(module, load) for module in ("pickle", "dill", "cloudpickle", "marshal") for load in ("load", "loads")}
MODULES = [
    path for part in ("pretraining", "probing", "comparing") for path in Path(rishd.__path__[0], part).glob("*.py")
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_call_that_loads_files_forbids_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        owner = getattr(getattr(node.func, "value", None), "id", None)
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        wanted = ("weights_only", True) if (owner, name) == ("torch", "load") else SAFE.get(name)
        if wanted:
            assert given.get(wanted[0]) is wanted[1], f"{path}:{node.lineno}: {name} without {wanted[0]}={wanted[1]}"
        assert (None if isinstance(node.func, ast.Name) else owner or "", name) not in FORBIDDEN, (
            f"{path}:{node.lineno}"
        )
