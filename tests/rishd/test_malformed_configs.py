"""Malformed configurations: any file is a valid configuration or gives one short line that names the key."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rishd.comparing.plan import Plan, load_plan, make_plan
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import ConfigError, dump_yaml, load_config, make_config
from rishd.pretraining.cost import measured_cost, static_cost
from rishd.pretraining.models import build_model, model_config
from rishd.pretraining.plain_data import parse_yaml

LONG = "x" * 200_000
DEEP = 5000
BOMB = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
MERGES = "a0: &a0 {k0: x}\n" + "\n".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: x}}" for i in range(1, 12)
)


def refused(call, *words):
    """The message of a refusal, which is one short line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert len(message) < 300, message
    assert message.isprintable(), message
    for word in words:
        assert word in message
    return message


# (YAML, TOML or None if TOML cannot express it, text in the message)
TEXTS = {
    "alias bomb": (BOMB, None, "expand to more than"),
    "merge bomb": (MERGES, None, "expand to more than"),
    "cyclic list": ("model: {settings: {a: &a [*a]}}", None, "holds itself"),
    "cyclic mapping": ("model: &m {settings: {<<: *m}}", None, "holds itself"),
    "deep lists": (f"data: {'[' * DEEP}{']' * DEEP}", f"data = {'[' * DEEP}{']' * DEEP}", "nested"),
    "deep mappings": (f"data: {'{a: ' * DEEP}{'}' * DEEP}", f"data = {'{a = ' * DEEP}1{'}' * DEEP}", "nested"),
    "deep keys": (
        "\n".join(" " * i + "a:" for i in range(DEEP // 5)),
        f"[model.settings{'.a' * DEEP}]\nb = 1",
        "nested",
    ),
    "power of ten": (f"training: {{steps: 1{'0' * 400}}}", f"[training]\nsteps = 1{'0' * 400}", "too large"),
    "too many digits": (f"training: {{steps: 1{'0' * 5000}}}", f"[training]\nsteps = 1{'0' * 5000}", ""),
    "large float": ("training: {steps: 1e400}", "[training]\nsteps = 1e400", "training.steps"),
    "boolean for an integer": ("seed: true", "seed = true", "seed = True"),
    "boolean for a number": ("optimizer: {lr: yes}", "[optimizer]\nlr = true", "optimizer.lr = True"),
    "number for a boolean": ("schedule: {lite: 1}", "[schedule]\nlite = 1", "schedule.lite = 1"),
    "text for an integer": ('seed: "1"', 'seed = "1"', "seed = '1'"),
    "text for a number": ('optimizer: {lr: "1e-3"}', '[optimizer]\nlr = "1e-3"', "optimizer.lr = '1e-3'"),
    "sexagesimal integer": ("training: {steps: 1:30}", None, "training.steps = '1:30'"),
    "sexagesimal float": ("optimizer: {lr: 1:30.5}", None, "optimizer.lr = '1:30.5'"),
    "duplicate section": ("seed: 1\nseed: 2", "seed = 1\nseed = 2", ""),
    "duplicate key": ("optimizer: {lr: 1, name: muon, lr: 2}", "optimizer = {lr = 1, lr = 2}", "lr"),
    "key that is no text": ("model: {settings: {1: 2}}", None, "the key '1' is not text"),
    "key that is a list": ("seed: 1\nmodel: {settings: {[a]: 2}}", None, "a key is a list; keys must be text (line 2,"),
    "key that is a list of lists": ("? [[a], b]\n: 2", None, "a key is a list; keys must be text (line 1,"),
    "key that is a mapping": ("seed: 1\n? {a: 1}\n: 2", None, "a key is a mapping; keys must be text (line 2,"),
    "key that is null": ("seed: 1\n~: 2", None, "the key '~' is not text"),
    "date": ("model: {settings: {a: !!timestamp 2020-01-01}}", "[model]\nsettings = {a = 2020-01-01}", ""),
    "not a number": ("model: {settings: {a: .nan}}", "[model]\nsettings = {a = nan}", "model.settings.a = nan"),
    "object": ("model: !!python/object/apply:os.system [ls]", None, "not plain data"),
    "wrong tag": ("seed: !!int 1:30", None, "not a plain int"),
    "set": ("model: {settings: !!set {a}}", None, "not plain data"),
    "half a character": ('model: {preset: "\\uD800"}', None, "surrogate"),
    "NUL": ('data: {dataset: "a\\0b"}', '[data]\ndataset = "a\\u0000b"', "data.dataset"),
    "unknown key": (f"optimizer: {{nam: {LONG}}}", f'[optimizer]\nnam = "{LONG}"', "nam is not a known setting"),
    "unknown long key": (f"optimizer: {{? {LONG[:1000]} : 1}}", f"[optimizer]\n{LONG} = 1", "not a known setting"),
    "unknown key that breaks lines": ('"a\\u2028b": 1', '"a\\u2028b" = 1', "not a known setting"),
    "many unknown keys": (
        "\n".join(f"k{i}: 1" for i in range(2000)),
        "\n".join(f"k{i} = 1" for i in range(2000)),
        "and 1997 more",
    ),
    "long value": (f"model: {{preset: {LONG}}}", f'[model]\npreset = "{LONG}"', "model.preset"),
    "long choice": (f"schedule: {{name: {LONG}}}", f'[schedule]\nname = "{LONG}"', "schedule.name"),
    "too long": ("#" * 2**21, "#" * 2**21, "at most"),
    "path for an optimizer": ('optimizer: {name: "../../x:y"}', '[optimizer]\nname = "../../x:y"', "optimizer.name"),
    "relative module": ('optimizer: {name: ".x:y"}', '[optimizer]\nname = ".x:y"', "optimizer.name"),
    "two documents": ("seed: 1\n---\nseed: 2", None, "document"),
    "tab": ("seed:\t\n\t1: [", "seed =", ""),
}
FILES = [
    pytest.param(suffix, text, word, id=f"{name}-{suffix}")
    for name, (in_yaml, in_toml, word) in TEXTS.items()
    for suffix, text in (("yaml", in_yaml), ("toml", in_toml))
    if text is not None
]


@pytest.mark.parametrize(("suffix", "text", "word"), FILES)
def test_files_are_refused_in_one_line(tmp_path, suffix, text, word):
    file = tmp_path / f"run.{suffix}"
    file.write_text(text)
    refused(lambda: load_config(file), word)
    (tmp_path / f"plan.{suffix}").write_text(
        f"run: run.{suffix}\nvariants: {{a: {{}}}}"
        if suffix == "yaml"
        else f'run = "run.{suffix}"\n[variants.a]\nlr = 1.0'
    )
    refused(lambda: load_plan(tmp_path / f"plan.{suffix}"))
    refused(lambda: load_plan(file))


@pytest.mark.parametrize(
    "key",
    [
        *(f"training.{name}" for name in ("steps", "tokens", "batch_size", "micro_batch_size")),
        *("data.epochs", "evaluation.every", "evaluation.tokens"),
        *("checkpoints.every", "checkpoints.keep", "logging.every"),
    ],
)
def test_counts_are_at_least_one(key):
    for value in (0, -3, 0.0):
        message = refused(lambda value=value: load_config(None, changes={key: value}))
        assert message == f"the overrides: {key} = {value} must be a whole number of at least 1."
    refused(lambda: load_config(None, changes={key: 1.5}), f"{key} = 1.5: input should be a valid integer")
    section, name = key.split(".")
    assert (
        getattr(getattr(load_config(None, ["logging.every=1", f"{key}=1e0", "schedule.warmup_steps=0"]), section), name)
        == 1
    )


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("seed=true", "seed = True"),
        ("training.steps=1:30", "'1:30'"),
        (f"training.steps=1{'0' * 400}", "too large"),
        (f"training.steps=1{'0' * 5000}", "too large"),
        (f"model.settings.a={'[' * DEEP}", "nested"),
        (f"model.settings{'.a' * DEEP}=1", "not the dotted key"),
        ("optimizer..lr=1", "not the dotted key"),
        ("=1", "not the dotted key"),
        ("optimizer.=1", "not the dotted key"),
        ("optimizer.settings={a: &a [*a]}", "holds itself"),
        ("optimizer.settings={a: 1, a: 2}", "there twice"),
        ("optimizer.name=../../x:y", "optimizer.name"),
        (f"optimizer.nam={LONG}", "optimizer.nam is not a known setting"),
        (LONG, "not of the form"),
        (f"seed={LONG}", "seed ="),
        (f"seed.{LONG[:100]}=1", "seed"),
        ("training.steps=-1", "training.steps"),
        ("model.settings.a=.inf", "model.settings.a"),
    ],
)
def test_overrides_are_refused_in_one_line(override, word):
    refused(lambda: load_config(None, [override]), word)
    key, _, value = override.partition("=")
    if override.count("=") == 1 and len(value) < 100 and not value.startswith(("&", "{")):  # the same in a plan
        plan = {"run": {}, "variants": {"a": {"set": {key: parse_yaml(value)}}}}
        if key != "seed":  # the plan's own key decides on it
            refused(lambda: make_plan(plan), "a")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lr": True}, "lr"),
        ({"lr": ["1e-3"]}, "lr"),
        ({"seeds": [True]}, "seeds"),
        ({"seeds": ["1:30"]}, "seeds"),
        ({"every_seed": "no"}, "every_seed"),
        ({"lengths": [float("nan")]}, "lengths"),
        ({"like": LONG}, "like"),
        ({LONG: 1}, "not a known setting"),
        ({"set": {LONG: 1}}, "not a known setting"),
    ],
)
def test_variants_of_a_plan_are_refused_in_one_line(changes, word):
    refused(lambda: make_plan({"run": {}, "variants": {"a": changes}}), word)


def test_what_looks_odd_and_is_right(tmp_path):
    """Anchors, merge keys, underscores, exponents, and text that looks like a number."""
    (tmp_path / "run.yaml").write_text(
        "model: &m {preset: 1M, settings: &s {num_hidden_layers: 2}}\n"
        "training: {steps: 1e3, batch_size: 010, clip: 1}\n"
        "data: {vocab_size: 32_000, revision: '1e5', subset: 1:30, dataset: 2020-01-01}\n"
        "optimizer: {settings: {<<: *s, a: [1e-3, -.5, 0.1]}}\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert (config.steps, config.training.batch_size, config.data.vocab_size) == (1000, 10, 32000)
    assert (config.data.revision, config.data.subset, config.data.dataset) == ("1e5", "1:30", "2020-01-01")
    assert config.optimizer.settings == {"num_hidden_layers": 2, "a": [1e-3, -0.5, 0.1]}
    (tmp_path / "again.yaml").write_text(dump_yaml(config.to_mapping()))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("preset", "bad", "word"),
    [
        ("1M", {"hidden_act": "nope"}, "hidden_act"),
        ("1M", {"to_dict": 1}, "to_dict"),
        ("1M", {"from_pretrained": 1}, "from_pretrained"),
        ("1M", {"__class__": 1}, "__class__"),
        ("1M", {"model_type": "gpt2"}, "model_type"),
        ("1M", {"auto_map": {"AutoConfig": "x.y"}}, "auto_map"),
        ("1M", {"dtype": "nope"}, "dtype"),
        ("1M", {"base_model_tp_plan": 3}, "base_model_tp_plan"),
        ("1M", {"num_hidden_layers": -1}, "num_hidden_layers"),
        ("1M", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("1M", {"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ("moe-tiny", {"num_experts": 10**12}, "num_experts"),
        ("moe-tiny", {"num_experts_per_tok": -1}, "num_experts_per_tok"),
        ("1M", {"num_attention_heads": 0}, "num_attention_heads"),
        ("1M", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("1M", {"hidden_size": -8}, "hidden_size"),
        ("1M", {"hidden_size": 10**15}, "hidden_size"),
        ("1M", {"head_dim": -2}, "head_dim"),
        ("1M", {"vocab_size": True}, "vocab_size"),
        ("1M", {"pad_token_id": 10**9}, "pad_token_id"),
        ("1M", {"attention_dropout": 7.0}, "attention_dropout"),
        ("1M", {"return_dict": False}, "return_dict"),
        ("1M", {"rope_parameters": 5}, "rope_parameters"),
        ("1M", {"id2label": 3}, "model.settings"),
        ("1M", {LONG: 3}, "model.settings"),
    ],
)
def test_settings_of_a_model_are_refused_in_one_line(preset, bad, word):
    config = make_config(
        {"model": {"preset": preset, "settings": bad}, "data": {"vocab_size": 320, "sequence_length": 8}}
    )

    def use():
        made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=8)
        static_cost(config, made)
        measured_cost(config, build_model(config, made), most=1)

    refused(use, word)


@pytest.mark.parametrize(
    "content", ["[" * DEEP, "[]", '{"model_type": 3}', '{"model_type": "llama", "a": NaN}', "\xff"]
)
def test_model_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    config = make_config({"model": {"config": str(tmp_path)}})
    refused(
        lambda: model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=8), "not a configuration of"
    )


@pytest.mark.parametrize(
    ("name", "bad", "word"),
    [
        ("adamw", {"betas": ["a", "b"]}, "betas"),
        ("adamw", {"betas": [0.9]}, "betas"),
        ("adamw", {"betas": [0.9, 0.9, 0.9]}, "betas"),
        ("adamw", {"betas": 3}, "betas"),
        ("adamw", {"eps": "x"}, "eps"),
        ("adamw", {"amsgrad": "no"}, "amsgrad"),
        ("adamw", {"params": 1}, "params"),
        ("adamw", {"lr": 1}, "optimizer.lr"),
        ("adamw", {"kwargs": 1}, "kwargs"),
        ("adamw", {LONG: 1}, "takes no"),
        ("muon-lite", {"momentum": [1, 2]}, "muon-lite"),
        ("muon-lite", {"process_group": 3}, "process_group"),
        ("muon-lite", {"mask": LONG}, "mask"),
        ("soap-lite", {"betas": ["a", "b"]}, "soap-lite"),
        ("soap-lite", {"settings": 1}, "settings"),
        ("tests.rishd.odd_optimizers:FailsInStep", {"eps": "x"}, "FailsInStep"),
        ("tests.rishd.odd_optimizers:Nothing", {}, "has no 'Nothing'"),
        ("tests.rishd.fails_to_import:Nothing", {}, "cannot be imported"),
        ("os:path", {}, "is not a concrete subclass of"),
        ("lite:LITEOptimizer", {}, "is not a concrete subclass of"),
        ("adamw", {"foreach": True, "fused": True}, "refuses optimizer.settings"),
        ("muon-lite", {"sharp_fraction": True}, "sharp_fraction = True"),
    ],
)
def test_settings_of_an_optimizer_are_refused_in_one_line(name, bad, word):
    config = make_config(
        {
            "model": {"preset": "1M", "settings": {"num_hidden_layers": 1}},
            "data": {"vocab_size": 320, "sequence_length": 8},
            "optimizer": {"name": name, "settings": bad},
        }
    )
    made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=8)
    refused(lambda: static_cost(config, made), word)


@pytest.mark.parametrize(
    "groups",
    [{"embedding": {"params": 1}}, {"embedding": {"kind": 3}}, {"nope": {"chi": 1}}, {"embedding": {"chi": "x"}}],
)
def test_groups_of_an_optimizer_are_refused_in_one_line(groups):
    config = make_config({"optimizer": {"groups": groups}})
    made = model_config(config.model, tokenizer=None, vocab_size=320, sequence_length=8)
    refused(lambda: static_cost(config, made), "optimizer.groups")


KEYS = [
    f"{section}.{key}" if isinstance(inner, dict) else section
    for section, inner in PretrainConfig().to_mapping().items()
    for key in (inner if isinstance(inner, dict) else (section,))
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**5000)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["1:30", "1e5", "0x10", "~", "null", "no", "a:b", "../x:y", "1M", "sdpa", "\x85", "\u2028"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(), VALUES, max_size=4))
@example({"data.revision": "1e5", "data.subset": "\x85\u2028\ufeff"})
@example({"model.settings": {"a": "0o17", "b": "1_0", "c": "=", "d": "<<"}})
def test_any_values_are_a_configuration_or_one_line(tmp_path_factory, values):
    nested = {}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        if rest and isinstance(nested.setdefault(section, {}), dict):
            nested[section][rest] = value
        else:
            nested[section] = value
    try:
        config = make_config(nested)
    except ConfigError as problem:
        assert str(problem).isprintable()
        assert len(str(problem)) < 600  # three findings
        return
    assert make_config(json.loads(json.dumps(config.to_mapping()))) == config
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(dump_yaml(config.to_mapping()), encoding="utf-8")
    assert load_config(file) == config


WORDS = ["seed", "training", "steps", "optimizer", "lr", "1", "1:30", "1e3", "true", "null", "!!int ", "!x ", "---\n"]
MARKS = [
    ": ",
    ":",
    "\n",
    "  ",
    "\t",
    *"{}[]#%@\\=,.\0\x85\u2028\ufeff\ud800\"'",
    "&a ",
    "*a",
    "<<",
    "- ",
    "? ",
    "| ",
    "> ",
]
PIECES = st.sampled_from([*WORDS, *MARKS])


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text(), st.sampled_from(["yaml", "toml"]))
def test_any_text_is_a_configuration_or_one_line(tmp_path_factory, text, suffix):
    file = tmp_path_factory.getbasetemp() / f"text.{suffix}"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for load in (load_config, load_plan):
        try:
            assert isinstance(load(file), PretrainConfig | Plan)
        except ConfigError as problem:
            message = str(problem).replace(str(file), "text")
            assert message.isprintable()
            assert len(message) < 600
