"""Models of people who mean harm, whole and through the loader: each ends in a typed error that says where, or is loaded as plain data."""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from khola.errors import BadConfig, BadFiles, BadJson, BadTokenizer, MissingTensor, UnsupportedFormat, WrongShape
from khola.loader import Loaded, load_model
from khola.models import architecture
from khola.settings import Settings
from tests.loader.whole_models import (
    CONFIG,
    MARKS,
    PIECES,
    add_key,
    arrays_of,
    dump,
    gguf_of,
    keys_of,
    rewritten,
    tokenizer_json,
    write_file,
    write_folder,
)
from tests.store import made_files
from tests.store.measure import Peak

ARCHITECTURES = ("llama", "qwen2", "qwen3", "ernie4_5")
OWN = {name: {"head_dim": 8} for name in ("qwen3", "ernie4_5")}
"""Keys that an architecture needs for the sizes of the tiny model."""
SPARE_BYTES = 64 << 20
LIMIT_S = 1.0

Load = Callable[[Path], Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a path, within a second and in words of both languages if it is refused."""
    settings = Settings(home=tmp_path / "home", user_home=tmp_path)

    def timed(path: Path) -> Loaded:
        start = time.perf_counter()
        try:
            return load_model(str(path), settings=settings)
        except BadFiles as wrong:
            said = str(wrong)
            assert path.name in said or ".json" in said or ".safetensors" in said, f"no file is named: {said}"
            assert len(said) < 1500
            assert wrong.told("bn") != said
            raise
        finally:
            assert time.perf_counter() - start < LIMIT_S

    return timed


def outcome(load: Load, path: Path) -> str:
    """What became of a model: "loaded" or the code of its error."""
    try:
        load(path)
    except BadFiles as wrong:
        return wrong.code
    return "loaded"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_models_are_good_as_they_are(load: Load, tmp_path: Path, name: str) -> None:
    config = {**CONFIG, **OWN.get(name, {}), "model_type": name}
    weights = arrays_of(config)
    for path in (
        write_file(tmp_path / "tiny.gguf", config, arrays=weights),
        write_folder(tmp_path / "one", config, arrays=weights),
        write_folder(tmp_path / "two", config, arrays=weights, shards=3),
    ):
        found = load(path)
        assert (found.vocab_tokens, found.tokenizer.size, found.context_tokens) == (len(PIECES), len(PIECES), 256)


NAMED_CODE = "evil.Model"
CODE_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"auto_map": {"AutoModel": NAMED_CODE}}, "loaded"),
    ({"auto_map": {"AutoConfig": "other/repository--evil.Config"}}, "loaded"),
    ({"auto_map": NAMED_CODE}, "loaded"),
    ({"auto_map": [NAMED_CODE, {}]}, "loaded"),
    ({"architectures": ["../evil"]}, "loaded"),
    ({"architectures": NAMED_CODE}, "loaded"),
    ({"id2label": {"0": "__import__('evil')"}}, "loaded"),
    ({"torch_dtype": "__import__('evil')"}, "loaded"),
    ({"dtype": "evil.dtype"}, "loaded"),
    ({"_name_or_path": "../../../etc/passwd"}, "loaded"),
    ({"transformers_version": "evil"}, "loaded"),
    ({"transformers.js_config": {"kv_cache_dtype": {"q4": "evil"}}}, "loaded"),
    ({"problem_type": NAMED_CODE}, "loaded"),
    ({"_attn_implementation": "evil/kernels"}, "unknown_config_key"),
    ({"_attn_implementation_internal": "evil/kernels"}, "unknown_config_key"),
    ({"_attn_implementation_autoset": True}, "unknown_config_key"),
    ({"_attn_implementation": {"": "evil/kernels:flash"}}, "unknown_config_key"),
    ({"attn_implementation": "evil/kernels"}, "unknown_config_key"),
    ({"_experts_implementation": "evil/kernels"}, "unknown_config_key"),
    ({"kernel_config": {"RMSNorm": "evil/kernels:norm"}}, "unknown_config_key"),
    ({"use_kernels": True}, "unknown_config_key"),
    ({"custom_pipeline": "evil/pipeline"}, "unknown_config_key"),
    ({"custom_pipelines": {"text-generation": {"impl": NAMED_CODE}}}, "unknown_config_key"),
    ({"custom_generate": "evil/generate"}, "unknown_config_key"),
    ({"trust_remote_code": True}, "unknown_config_key"),
    ({"code_revision": "main"}, "unknown_config_key"),
    ({"text_config": {"model_type": "llama", "auto_map": {"AutoModel": NAMED_CODE}}}, "unknown_config_key"),
    ({"vision_config": {"trust_remote_code": True}}, "unknown_config_key"),
    ({"sub_configs": {"decoder": {"_attn_implementation": "evil/kernels"}}}, "unknown_config_key"),
    ({"base_model_class": NAMED_CODE}, "unknown_config_key"),
    ({"quantization_config": {"quant_method": NAMED_CODE}}, "unsupported_format"),
    ({"quantization_config": {"quant_method": ["fp8"]}}, "unsupported_format"),
    ({"quantization_config": {"modules_to_not_convert": [NAMED_CODE]}}, "unsupported_format"),
    ({"quantization_config": "evil.Quantizer"}, "unsupported_format"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": "evil"}}, "bad_config"),
    ({"model_type": "../../evil"}, "unsupported_format"),
    ({"model_type": "khola.models.text.llama"}, "unsupported_format"),
    ({"model_type": "__init__"}, "unsupported_format"),
    ({"model_type": "os"}, "unsupported_format"),
    ({"model_type": "llama\0"}, "unsupported_format"),
    ({"model_type": ["llama"]}, "bad_config"),
    ({"hidden_act": "os.system"}, "bad_config"),
    ({"hidden_act": {"__reduce__": 1}}, "bad_config"),
    ({"rope_scaling": {"rope_type": "evil.Rope"}}, "bad_config"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "init_fn": NAMED_CODE}}, "unknown_config_key"),
]


@pytest.mark.parametrize("number", range(len(CODE_CONFIGS)))
def test_configurations_that_name_code_are_data(load: Load, tmp_path: Path, number: int) -> None:
    changes, expected = CODE_CONFIGS[number]
    assert outcome(load, write_folder(tmp_path / "model", changes=changes)) == expected


STRANGE: tuple[Any, ...] = (
    0, -1, 1, 2**20, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**400,
    -0.0, 1e-30, 0.5, 1e30, 1e308, math.nan, math.inf, -math.inf, True, None, "", "7", "x" * 2000, [], [1], {}, {"a": 1}, ...,
)  # fmt: skip
TAKEN = {
    "num_key_value_heads": (2,), "head_dim": (None,), "max_position_embeddings": (1, 2**20), "rms_norm_eps": (1e-30, 0.5),
    "rope_theta": (2**20, 2**31 - 1, 2**31, 2**32, None), "rope_scaling": (None, {}), "rope_parameters": (None, {}),
    "tie_word_embeddings": (True,), "layer_types": (None,), "sliding_window": (1, 2**20, None),
    "max_window_layers": (0, 1),
    "use_sliding_window": (True,), "attention_bias": (), "mlp_bias": (), "rope_interleaved": (), "use_mrope": (),
    "use_bias": (), "compression_ratio": (1, 0.5),
}  # fmt: skip
"""Strange values that mean something after all, by key; `...` (the key is missing) is another question."""


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_key_of_a_configuration_with_every_strange_value(load: Load, tmp_path: Path, name: str, part: int) -> None:
    config = {**CONFIG, **OWN.get(name, {}), "model_type": name}
    folder = write_folder(tmp_path / "model", config)
    fields = {field.encode_name: field for field in msgspec.structs.fields(architecture(name).Config)}
    for key, field in fields.items():
        for value in STRANGE[part::3]:
            dump(folder / "config.json", {known: v for known, v in {**config, key: value}.items() if v is not ...})
            found = outcome(load, folder)
            if value is ...:
                assert found == ("bad_config" if field.required else found)
                continue
            meant = any(value is good or (value == good and type(value) is type(good)) for good in TAKEN.get(key, ()))
            assert (found == "loaded") == meant, f"{key} = {value!r:.60} is {found}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_rotary_key_with_every_strange_value(load: Load, tmp_path: Path, name: str) -> None:
    config = {**CONFIG, **OWN.get(name, {}), "model_type": name}
    folder = write_folder(tmp_path / "model", config)
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"factor": 2.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.2},
        "divisors": {"divisors": [1.0, 1.0, 1.0, 1.0]},
    }
    for kind, given in kinds.items():
        for key in given:
            for value in (0, -1, 2**31, 2**63, 10**400, math.nan, math.inf, "7", [], {}, [[1.0]]):
                dump(folder / "config.json", {**config, "rope_scaling": {"rope_type": kind, **given, key: value}})
                found = outcome(load, folder)
                assert found in ("bad_config", "bad_json"), f"{kind}.{key} = {value!r:.60} is {found}"


GGUF_VALUES: tuple[tuple[str, Any], ...] = (
    *(("uint32", value) for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)), ("int32", -1), ("uint64", 2**63), ("uint64", 2**64 - 1),
    ("int64", -(2**63)), ("bool", True), *(("float32", value) for value in (0.0, -1.0, 1e30, math.nan, math.inf)), ("float64", -4.0),
    ("float64", math.nan), ("string", ""), ("string", "4"), ("strings", []), ("strings", ["4"]), ("int32s", [4]), ("float32s", [math.nan]),
)  # fmt: skip
GGUF_TAKEN = {
    "context_length": [("uint32", 1)], "expert_count": [("uint32", 0)], "rope.scaling.original_context_length": [("uint32", 1)],
    "rope.scaling.yarn_beta_fast": [("float32", 0.0)], "rope.freq_base": [],
}  # fmt: skip
"""Strange values that mean something after all."""
MISSING = dict.fromkeys(
    ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
     "attention.layer_norm_rms_epsilon"), "bad_config",
) | {"attention.head_count_kv": "wrong_shape"}  # fmt: skip
"""What a file without a key is; loaded where the key has a default that fits."""
OPTIONAL = (
    "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size", "expert_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
)  # fmt: skip


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_key_of_a_gguf_file_with_every_strange_value(load: Load, tmp_path: Path, name: str, part: int) -> None:
    config, path = {**CONFIG, **OWN.get(name, {}), "model_type": name}, tmp_path / "tiny.gguf"
    whole = gguf_of(config)
    required = [key.removeprefix(f"{name}.") for key in keys_of(config) if key.startswith(f"{name}.")]
    for key in (*required, *OPTIONAL)[part::2]:
        others = [fields for fields in whole.keys if fields[1].value != f"{name}.{key}".encode()]
        for kind, value in GGUF_VALUES:
            made = made_files.Gguf(keys=[*others], tensors=whole.tensors, data=whole.data)
            add_key(made, f"{name}.{key}", kind, value)
            found = outcome(load, rewritten(path, made.encoded()))
            assert (found == "loaded") == ((kind, value) in GGUF_TAKEN.get(key, ())), f"{key} = {kind} {value!r} is {found}"
            assert found in ("loaded", "bad_config", "wrong_shape", "missing_tensor", "unexpected_tensor", "unsupported_format")
        made = made_files.Gguf(keys=others, tensors=whole.tensors, data=whole.data)
        assert outcome(load, rewritten(path, made.encoded())) == MISSING.get(key, "loaded")


def changed(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a place of a tokenizer.json; `...` takes the place away."""

    def change(whole: dict[str, Any]) -> None:
        *steps, last = path
        here: Any = whole
        for step in steps:
            here = here[step]
        if value is ...:
            del here[last]
        elif last == "+":
            here.append(value)
        else:
            here[last] = value

    return change


MARK = {"id": 261, "content": "<|x|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "an id beyond the head": changed(("model", "vocab", "ab"), len(PIECES)),
    "an id far beyond": changed(("model", "vocab", "ab"), 2**31),
    "an id over 64 bits": changed(("model", "vocab", "ab"), 2**64),
    "a negative id": changed(("model", "vocab", "ab"), -1),
    "an id that is true": changed(("model", "vocab", "ab"), True),
    "an id that is a number with a point": changed(("model", "vocab", "ab"), 5.0),
    "an id of two pieces": changed(("model", "vocab", "ab"), 5),
    "an id of a mark": changed(("model", "vocab", "ab"), 261),
    "a mark that is a piece": changed(("added_tokens", 0, "content"), "a"),
    "a mark twice": changed(("added_tokens", "+"), {**MARK, "content": MARKS[0]}),
    "an empty mark": changed(("added_tokens", 0, "content"), ""),
    "a mark of a mebibyte": changed(("added_tokens", 0, "content"), "x" * (1 << 20)),
    "a mark with a control character": changed(("added_tokens", 0, "content"), "<|a\0b|>"),
    "a mark without a place": changed(("added_tokens", "+"), {**MARK, "id": 2**40}),
    "a piece of a mebibyte": changed(("model", "vocab", "x" * (1 << 20)), 5),
    "a merge of absent pieces": changed(("model", "merges", "+"), ["never", "seen"]),
    "a merge of three": changed(("model", "merges", "+"), ["a", "b", "c"]),
    "a merge of one": changed(("model", "merges", "+"), ["a"]),
    "a merge of numbers": changed(("model", "merges", "+"), [1, 2]),
    "a merge twice": changed(("model", "merges", "+"), ["t", "h"]),
    "bytes that are not there": changed(("model", "byte_fallback"), True),
    "an unknown token that is none": changed(("model", "unk_token"), "<unk>"),
    "a word model": changed(("model", "type"), "WordLevel"),
    "a unigram model": changed(("model", "type"), "Unigram"),
    "dropout": changed(("model", "dropout"), 0.1),
    "a pattern without end": changed(("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(a+)+$"}),
    "a step of code": changed(("pre_tokenizer", "pretokenizers", 0), {"type": "Custom", "module": "evil"}),
    "a decoder of code": changed(("decoder",), {"type": "Custom", "module": "evil"}),
    "a normaliser that grows": changed(("normalizer",), {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}),
    "a normaliser of patterns": changed(("normalizer",), {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
    "steps without end": changed(("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 10_000}),
    "no decoder": changed(("decoder",), ...),
    "no model": changed(("model",), ...),
    "no vocabulary": changed(("model", "vocab"), {}),
    "a key of code": changed(("auto_map",), {"AutoTokenizer": NAMED_CODE}),
    "a model key of code": changed(("model", "trust_remote_code"), True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_vocabularies_are_refused(load: Load, tmp_path: Path, name: str) -> None:
    whole = copy.deepcopy(tokenizer_json())
    TOKENIZERS[name](whole)
    folder = write_folder(tmp_path / "model")
    dump(folder / "tokenizer.json", whole)
    with pytest.raises((BadTokenizer, UnsupportedFormat), match=r"tokenizer\.json|model:"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        ("tokenizer_config.json", {"eos_token": "<nowhere>"}, r"tokenizer_config\.json: eos_token is '<nowhere>'"),
        ("tokenizer_config.json", {"eos_token": 7}, r"tokenizer_config\.json: .*eos_token"),
        ("tokenizer_config.json", {"bos_token": {"content": 7}}, r"tokenizer_config\.json: bos_token is '7'"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, r"tokenizer_config\.json: .*add_bos_token"),
        ("generation_config.json", {"eos_token_id": 2**40}, r"generation_config\.json: eos_token_id is '1099511627776'"),
        ("generation_config.json", {"eos_token_id": [5, -1]}, r"generation_config\.json: eos_token_id is '-1'"),
        ("generation_config.json", {"eos_token_id": math.nan}, r"generation_config\.json: the number NaN"),
        ("generation_config.json", [1], r"generation_config\.json: expected an object"),
    ],
)
def test_wrong_settings_are_named_with_the_file_they_stand_in(load: Load, tmp_path: Path, file: str, settings: Any, said: str) -> None:
    folder = write_folder(tmp_path / "model")
    dump(folder / file, settings)
    with pytest.raises((BadTokenizer, BadJson), match=said):
        load(folder)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"model_type": 7}, r"model/config\.json: model_type is 7; expected the name"),
        ({"model_type": "lama"}, r"model/config\.json: khola does not know the architecture 'lama'"),
        ({"hidden_size": 33}, r"model/config\.json: hidden_size is 33"),
        ({"hidden_act": "gelu"}, r"model/config\.json: hidden_act is 'gelu'; expected 'silu'"),
        ({"rope_interleaved": True}, r"rope_interleaved is True; expected False"),
        ({"secret_sauce": 1}, r"model/config\.json: secret_sauce is not a key"),
        ({"num_hidden_layers": 0}, r"model/config\.json: num_hidden_layers is 0; expected"),
    ],
)
def test_errors_of_a_configuration_name_file_key_and_value(load: Load, tmp_path: Path, key: dict[str, Any], said: str) -> None:
    with pytest.raises((BadConfig, UnsupportedFormat), match=said):
        load(write_folder(tmp_path / "model", changes=key))


def pipe(path: Path) -> None:
    """A pipe that nobody writes into."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def linked(target: str) -> Callable[[Path], None]:
    """A link to a place."""

    def link(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return link


def emptied(path: Path) -> None:
    """A folder where a file belongs."""
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
@pytest.mark.parametrize(
    "file",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "model.safetensors",
        "model.safetensors.index.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "put",
    [pipe, emptied, linked("/etc/passwd"), linked("/dev/zero"), linked("../secret"), linked("itself"), linked("/proc/self/mem")],
    ids=["pipe", "folder", "passwd", "zero", "above", "nothing", "memory"],
)  # fmt: skip
def test_places_that_hold_no_file_are_refused_at_once(load: Load, tmp_path: Path, file: str, put: Callable[[Path], None]) -> None:
    (tmp_path / "secret").write_text("{}", encoding="utf-8")
    folder = write_folder(tmp_path / "model")
    put(folder / file)
    with pytest.raises(BadFiles):
        load(folder)


def test_a_shard_that_leads_out_is_not_followed(load: Load, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    (tmp_path / "outside.safetensors").write_bytes(shard.read_bytes())
    linked("../outside.safetensors")(shard)
    with pytest.raises(BadFiles, match="leads out"):
        load(folder)
    shard.unlink()
    os.link(tmp_path / "outside.safetensors", shard)
    load(folder)


RENAMED = {
    "pickle": pickle.dumps({"weight": [1.0]}, 2), "archive": b"PK\x03\x04" + bytes(200), "keras": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "array": b"\x93NUMPY\x01\x00" + bytes(200), "onnx": b"\x08\x07\x12\x07pytorch" + bytes(200), "gzip": b"\x1f\x8b" + bytes(200),
    "text": b"hello world, this is no model", "pointer": b"version https://git-lfs.github.com/spec/v1\n", "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", RENAMED)
def test_other_formats_under_a_models_name(load: Load, tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "model")
    rewritten(folder / "model.safetensors", RENAMED[kind])
    file = rewritten(tmp_path / "model.gguf", RENAMED[kind])
    for path in (folder, file):
        assert outcome(load, path) in ("unsupported_format", "truncated_file")
    for ending in (".bin", ".pt", ".pkl", ".h5", ".npz", ".onnx", ".ckpt", ""):
        with pytest.raises(UnsupportedFormat, match="a folder with a safetensors checkpoint"):
            load(rewritten(tmp_path / f"other{ending}", RENAMED[kind]))


def test_one_format_under_the_name_of_the_other(load: Load, tmp_path: Path) -> None:
    folder, file = write_folder(tmp_path / "model"), write_file(tmp_path / "tiny.gguf")
    swapped = file.read_bytes()
    with pytest.raises(UnsupportedFormat, match="found safetensors"):
        load(rewritten(file, (folder / "model.safetensors").read_bytes()))
    rewritten(folder / "model.safetensors", swapped)
    with pytest.raises(UnsupportedFormat, match="found GGUF"):
        load(folder)


PROMISES: tuple[dict[str, Any], ...] = (
    {"num_hidden_layers": 4096},
    {"vocab_size": 1 << 24},
    {"hidden_size": 1 << 20},
    {"intermediate_size": 1 << 20},
    {"num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 4096},
    {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_hidden_layers": 4096, "num_attention_heads": 4096,
     "num_key_value_heads": 4096, "head_dim": 4096, "max_position_embeddings": 1 << 28},
)  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_far_above_the_file_are_refused_before_anything_is_taken(load: Load, tmp_path: Path, name: str) -> None:
    config = {**CONFIG, **OWN.get(name, {}), "model_type": name}
    load(write_folder(tmp_path / "model", config))
    for changes in PROMISES:
        folder = write_folder(tmp_path / "model", config, changes=changes)
        peak = Peak()
        with pytest.raises((WrongShape, MissingTensor)):
            load(folder)
        assert peak.grown() < SPARE_BYTES


def test_a_sparse_file_of_a_terabyte_is_not_read(load: Load, tmp_path: Path) -> None:
    made = gguf_of()
    path = rewritten(tmp_path / "tiny.gguf", made.encoded())
    os.truncate(path, 1 << 40)
    peak = Peak()
    with pytest.raises(BadFiles, match="belong to nothing"):
        load(path)
    folder = write_folder(tmp_path / "model")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"):
        write_folder(folder)
        os.truncate(folder / file, 1 << 40)
        with pytest.raises(BadFiles):
            load(folder)
    assert peak.grown() < SPARE_BYTES


def cuts(whole: bytes, header: int, step: int) -> Iterator[int]:
    """Lengths to cut a file to: within the header every `step` bytes, in the data twenty places."""
    yield from range(0, header, step)
    yield from range(header, len(whole), max(1, (len(whole) - header) // 20))


def check_cuts(load: Load, tmp_path: Path, step: int) -> int:
    """Cut every file of a model short; how many were tried."""
    made, tried = gguf_of(), 0
    whole = made.encoded()
    header = sum(len(part.encoded()) for part in made.head())
    file = tmp_path / "tiny.gguf"
    assert outcome(load, rewritten(file, whole)) == "loaded"
    for length in cuts(whole, header, step):
        assert outcome(load, rewritten(file, whole[:length])) in ("truncated_file", "unsupported_format", "bad_header"), length
        tried += 1
    folder = write_folder(tmp_path / "model", shards=2)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
        for length in cuts(whole, header, step):
            found = outcome(load, rewritten(path, whole[:length]))
            assert found in ("truncated_file", "unsupported_format", "bad_json", "bad_header", "bad_tokenizer"), (path.name, length, found)
            tried += 1
        rewritten(path, whole)
    assert outcome(load, folder) == "loaded"
    return tried


def test_models_cut_short(load: Load, tmp_path: Path) -> None:
    assert check_cuts(load, tmp_path, 23) > 600


@pytest.mark.slow
def test_models_cut_short_at_every_byte(load: Load, tmp_path: Path) -> None:
    assert check_cuts(load, tmp_path, 1) > 13_000
