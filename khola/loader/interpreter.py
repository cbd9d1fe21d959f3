"""Which interpreter computes a model, and why."""

from __future__ import annotations

from collections.abc import Callable

from khola.errors import NoKernel, UnknownOption
from khola.ops.vocabulary import Interpreter
from khola.settings import Settings

INTERPRETERS = ("auto", "native", "numpy", "torch")
CACHES = ("auto", "bf16", "int8")
"""How a cache keeps numbers: as the interpreter computes, or in the form that is named; only the native interpreter has several."""
SLOW = "scalar"
"""The library without any instruction set of its own: plain C++ decodes SmolLM2 at a sixth of the speed of numpy with BLAS."""

Tell = Callable[..., None]


def unheard(text: str, **facts: object) -> None:
    """A `tell` that nobody listens to."""


def interpreter_named(
    name: str,
    settings: Settings,
    device: str = "cpu",
    dtype: str = "float32",
    cache: str = "auto",
    tell: Tell | None = None,
    *,
    precise: bool = False,
) -> Interpreter:
    """A new interpreter.

    Args:
        name: "native", "numpy" or "torch"; "auto" is native where this machine can, else numpy.
        settings: threads, and the instruction set of the native one.
        device: of torch.
        dtype: numbers to compute with; native has its own (8 bits and bfloat16 in, float32 sums).
        cache: one of `CACHES`.
        tell: hears why "auto" is numpy.
        precise: the native one rounds neither inputs of products nor keys and values; numpy never does.
    Raises:
        UnknownOption: there is none of this name, torch is not installed, or the dtype, cache, arithmetic or instruction set is not to be
            had.
        NoKernel: "native" is asked for where no library can be loaded.
    """
    require_cache(cache, name)
    require_precise(precise, cache, name)
    if name == "auto":
        return _automatic(settings, dtype, cache, unheard if tell is None else tell, precise)
    if name == "native":
        if dtype != "float32":
            raise UnknownOption("the native interpreter computes in numbers of its own, not in {dtype}", dtype=dtype)
        return _native(settings, cache, precise)
    if name == "numpy":
        from khola.ops.numpy_ops import NumpyOps

        return NumpyOps(threads=settings.threads, dtype=dtype)
    if name == "torch":
        try:
            from khola.ops.torch_ops import TorchOps
        except ImportError:
            raise UnknownOption("the torch interpreter needs torch, which is not installed", hint='pip install "khola[torch]"') from None
        return TorchOps(device=device, dtype=dtype)
    raise UnknownOption("there is no interpreter {name!r}; expected one of {known}", name=name, known=", ".join(INTERPRETERS))


def instruction_set(settings: Settings) -> str:
    """Choose the instruction set of the native library; its name.

    Raises:
        UnknownOption: the one that the settings force is not to be had here.
        NoKernel: no library can be loaded.
    """
    from khola.native.lib import available_isas, choose_isa

    known = available_isas()
    if settings.isa and settings.isa not in known:
        raise UnknownOption("{name} is {value!r}; this machine has {known}", name="KHOLA_ISA", value=settings.isa, known=", ".join(known))
    return choose_isa(settings.isa)


def require_cache(cache: str, interpreter: str) -> None:
    """Refuse a cache that an interpreter does not have.

    Raises:
        UnknownOption: nobody has it, or this interpreter has only its own.
    """
    if cache not in CACHES:
        raise UnknownOption("there is no cache in {cache!r}; expected one of {known}", cache=cache, known=", ".join(CACHES))
    if cache != "auto" and interpreter not in ("auto", "native"):
        raise UnknownOption(
            "the {interpreter} interpreter keeps its cache in the numbers it computes with, not in {cache}",
            hint="leave the cache at auto, or use the native interpreter",
            interpreter=interpreter,
            cache=cache,
        )


def require_precise(precise: bool, cache: str, interpreter: str) -> None:
    """Refuse precise arithmetic to an interpreter that has no other, and beside a cache that rounds.

    Raises:
        UnknownOption: the interpreter rounds nothing anyway, or keys and values are asked for in other numbers.
    """
    if precise and interpreter not in ("auto", "native"):
        raise UnknownOption(
            "the {interpreter} interpreter rounds nothing to 8 or 16 bits by itself; precise is for the native one",
            hint="leave precise out",
            interpreter=interpreter,
        )
    if precise and cache != "auto":
        raise UnknownOption(
            "precise keeps keys and values in float32, not in {cache}", hint="leave the cache at auto, or leave precise out", cache=cache
        )


def chosen(settings: Settings) -> str:
    """Name of the interpreter that "auto" is here.

    Raises:
        UnknownOption: the settings force an instruction set that is not to be had here.
    """
    return _automatic(settings, "float32", "auto", unheard, False).name


def _automatic(settings: Settings, dtype: str, cache: str, tell: Tell, precise: bool) -> Interpreter:
    """Native if it is here and fit, else numpy, with one line that says why."""
    if dtype != "float32":
        return interpreter_named("numpy", settings, dtype=dtype, cache=cache)
    try:
        if instruction_set(settings) != SLOW or settings.isa == SLOW:
            return _native(settings, cache, precise)
        tell("numpy runs the model: the native library knows no instruction set of this processor, and plain C++ is slower")
    except NoKernel as wrong:
        tell("numpy runs the model, several times slower than native would: {reason}", reason=str(wrong))
    return interpreter_named("numpy", settings, cache=cache)


def _native(settings: Settings, cache: str, precise: bool) -> Interpreter:
    from khola.ops.native_ops import NativeOps

    instruction_set(settings)
    return NativeOps(threads=settings.threads, cache="float32" if precise else "int8" if cache == "int8" else "bf16")
