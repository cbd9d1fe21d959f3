"""Which interpreter computes: the native one where it can, another where it cannot, and never without a word."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import khola
from khola.errors import NoKernel, UnknownOption
from khola.loader import interpreter as module
from khola.loader.interpreter import chosen, instruction_set, interpreter_named
from khola.loader.load import load_model
from khola.native import lib
from khola.ops.native_ops import NativeOps
from khola.ops.vocabulary import CacheSpec, LayerCache
from khola.settings import Settings
from tests.loader.tiny_gguf import tiny_gguf
from tests.needs import needs_library


class Ear(list[str]):
    """Hears what is told."""

    def __call__(self, text: str, **facts: Any) -> None:
        self.append(text.format(**facts))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, user_home=tmp_path)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise NoKernel("no native library was built here")

    monkeypatch.setattr(lib, "library", none)


def with_isa(settings: Settings, isa: str) -> Settings:
    return Settings(home=settings.home, user_home=settings.user_home, isa=isa)


@needs_library
def test_native_is_chosen_where_it_is_fit(settings: Settings) -> None:
    best = lib.available_isas()[0]
    expected = "numpy" if best == "scalar" else "native"
    ear = Ear()
    assert interpreter_named("auto", settings, tell=ear).name == chosen(settings) == expected
    assert len(ear) == (expected == "numpy")
    assert instruction_set(settings) == best


@needs_library
def test_who_asks_what_there_is_changes_nothing_for_others(settings: Settings) -> None:
    def ask(_: int) -> str:
        instruction_set(settings)
        return str(lib.library().kh_isa().decode())

    best = instruction_set(settings)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4000))) == {best}


def test_without_a_library_numpy_computes_and_says_so(settings: Settings, no_library: None) -> None:
    ear = Ear()
    assert interpreter_named("auto", settings, tell=ear).name == chosen(settings) == "numpy"
    assert ear == ["numpy runs the model, several times slower than native would: no native library was built here"]
    with pytest.raises(NoKernel):
        interpreter_named("native", settings)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_a_cache_that_an_interpreter_does_not_have_is_refused(name: str, cache: str, settings: Settings) -> None:
    with pytest.raises(UnknownOption, match=f"{name} interpreter keeps its cache in the numbers it computes with, not in {cache}"):
        interpreter_named(name, settings, cache=cache)
    with pytest.raises(UnknownOption, match="'int3'"):
        interpreter_named("auto", settings, cache="int3")


def test_numpy_does_not_take_over_with_another_cache_than_was_asked_for(settings: Settings, no_library: None, tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="numpy interpreter"):
        interpreter_named("auto", settings, cache="int8")
    with pytest.raises(UnknownOption, match="numpy interpreter"):
        load_model(str(tiny_gguf(tmp_path / "tiny.gguf")), settings=settings, cache="int8")


@needs_library
def test_a_cache_in_8_bits_takes_half_the_memory(settings: Settings) -> None:
    spec = CacheSpec((LayerCache(3, 64, 64), LayerCache(1, 40, 96)))
    auto, bf16, int8 = (interpreter_named("native", settings, cache=cache).token_bytes(spec) for cache in ("auto", "bf16", "int8"))
    numbers, scales = 3 * (64 + 64) + 64 + 96, 3 * 2 + 2
    assert (auto, bf16, int8) == (2 * numbers, 2 * numbers, numbers + 2 * scales), "heads are padded to 32 numbers"


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_never_rounds_has_no_precise_arithmetic_beside(name: str, settings: Settings) -> None:
    with pytest.raises(UnknownOption, match=f"the {name} interpreter rounds nothing"):
        interpreter_named(name, settings, precise=True)
    for cache in ("bf16", "int8"):
        with pytest.raises(UnknownOption, match=f"precise keeps keys and values in float32, not in {cache}"):
            interpreter_named("auto", settings, cache=cache, precise=True)


def test_numpy_takes_over_where_precise_was_asked_for(settings: Settings, no_library: None) -> None:
    assert interpreter_named("auto", settings, precise=True).name == "numpy"


@needs_library
def test_a_precise_model_writes_as_numpy_does(settings: Settings, tmp_path: Path) -> None:
    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    for asked in ({"interpreter": "native"}, {}):
        with khola.load(path, settings=settings, context=64, precise=True, **asked) as model:
            assert isinstance(model.loaded.ops, NativeOps) and model.loaded.ops.precise
            assert model.loaded.ops.token_bytes(model.loaded.cache) == 2 * NativeOps().token_bytes(model.loaded.cache)
            native = model.score("the quick brown fox jumps over").logprobs
    with khola.load(path, settings=settings, context=64, interpreter="numpy") as model:
        numpy = model.score("the quick brown fox jumps over").logprobs
    assert len(native) > 3 and native == pytest.approx(numpy, abs=1e-4)


@needs_library
def test_plain_code_leaves_the_work_to_numpy_unless_it_is_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "available_isas", lambda: ("scalar",))
    monkeypatch.setattr(lib, "choose_isa", lambda wanted: "scalar")
    ear = Ear()
    assert interpreter_named("auto", settings, tell=ear).name == "numpy"
    assert len(ear) == 1 and "plain C++ is slower" in ear[0]
    assert interpreter_named("auto", with_isa(settings, "scalar"), tell=ear).name == "native"
    assert interpreter_named("native", settings).name == "native"
    assert len(ear) == 1


@needs_library
def test_an_instruction_set_can_be_forced(settings: Settings) -> None:
    try:
        for isa in lib.available_isas():
            assert instruction_set(with_isa(settings, isa)) == isa
    finally:
        lib.choose_isa("")
    with pytest.raises(UnknownOption, match=r"KHOLA_ISA is 'sse'; this machine has .*scalar"):
        interpreter_named("auto", with_isa(settings, "sse"))


@needs_library
def test_a_dtype_that_native_does_not_have(settings: Settings) -> None:
    assert interpreter_named("auto", settings, dtype="float64").name == "numpy"
    with pytest.raises(UnknownOption, match="not in float64"):
        interpreter_named("native", settings, dtype="float64")
    with pytest.raises(UnknownOption, match="auto, native, numpy, torch"):
        interpreter_named("jax", settings)


@needs_library
def test_threads_are_those_of_the_settings(settings: Settings) -> None:
    ops = interpreter_named("native", Settings(home=settings.home, user_home=settings.user_home, threads=3))
    assert ops.threads == 3  # type: ignore[attr-defined]


@needs_library
@pytest.mark.parametrize("asked", ["auto", "native"])
def test_a_model_that_native_cannot_run(settings: Settings, tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "auto" numpy takes over with one line; who asks for native hears why not."""
    from khola.native import pack

    model = str(tiny_gguf(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(module, "SLOW", "none")
    monkeypatch.setattr(pack, "library", _Refusing)
    ear = Ear()
    if asked == "native":
        with pytest.raises(NoKernel, match="no packing for numbers of the format Q8_0"):
            load_model(model, settings=settings, interpreter=asked, tell=ear)
        assert not ear
        return
    assert load_model(model, settings=settings, interpreter=asked, tell=ear).ops.name == "numpy"
    assert len(ear) == 1 and "no packing" in ear[0]


class _Refusing:
    """A library that packs nothing."""

    def kh_form(self, *_: Any) -> int:
        return -3
