"""The library on processors that are not at hand: cross-compiled and emulated.

They need a compiler for 64-bit ARM and QEMU's user mode (Debian: g++-aarch64-linux-gnu, qemu-user); without them nothing is claimed.
"""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from khola.native.build import OPTIONS, own_flags
from khola.native.lib import library_path
from tests.needs import needs, said

SOURCES = Path(__file__).parents[2] / "khola" / "native" / "csrc"
ARM_COMPILER, ARM_EMULATOR, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64", "qemu-x86_64"


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program of the kernels, built for 64-bit ARM without a warning."""
    folder = tmp_path_factory.mktemp("arm")
    flags = own_flags("aarch64")

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        strict = ("-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
        said(ARM_COMPILER, *OPTIONS, *strict, *flags.get(source.name, ()), "-c", source, "-o", made)
        return made

    sources = [*sorted(SOURCES.glob("*.cc")), Path(__file__).with_name("check_kernels.cc")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "check_kernels"
    said(ARM_COMPILER, *objects, "-static", "-pthread", "-o", program)
    return program


@pytest.mark.slow
@needs(ARM_COMPILER, ARM_EMULATOR)
@pytest.mark.parametrize(
    ("processor", "sets"), [("max", ["dotprod", "neon"]), pytest.param("cortex-a53", ["neon"], marks=pytest.mark.soak)]
)
def test_kernels_of_64_bit_arm(processor: str, sets: list[str], arm_program: Path) -> None:
    """A recent processor, and one of the first: without dot products it must never meet one."""
    lines = said(ARM_EMULATOR, "-cpu", processor, arm_program).splitlines()
    assert [line.split(":")[0] for line in lines] == [*sets, "scalar", "best"]
    assert lines[-1] == f"best: {sets[0]}"
    assert all(int(line.split()[1]) > 2000 for line in lines[:-1])


@pytest.mark.slow
@needs(ARM_COMPILER, ARM_EMULATOR)
def test_a_planted_fault_is_seen(arm_program: Path) -> None:
    assert "differs" in said(ARM_EMULATOR, arm_program, "--fault", code=1)


@needs(EMULATOR)
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or library_path() is None, reason="needs the native library of an x86 processor")
@pytest.mark.parametrize(
    ("processor", "sets"), [("Nehalem", ("scalar",)), ("Haswell", ("avx2", "scalar")), ("Skylake-Server", ("avx2", "scalar"))]
)
def test_what_older_processors_choose(processor: str, sets: tuple[str, ...]) -> None:
    """The last one has AVX-512, but neither VNNI nor BF16; the emulator leaves AVX-512 out altogether."""
    found = said(EMULATOR, "-cpu", processor, sys.executable, "-c", "from khola.native.lib import available_isas; print(available_isas())")
    assert found.splitlines()[-1] == str(sets)


@pytest.mark.slow
@needs("g++", "nm")
def test_no_copy_of_shared_code_is_compiled_for_one_instruction_set(tmp_path: Path) -> None:
    """The linker keeps one copy of a function with external linkage: one with AVX-512 in it would stop an older processor."""
    for name, flags in own_flags(platform.machine()).items():
        if name not in ("kernels_avx2.cc", "kernels_avx512.cc", "kernels_dotprod.cc"):
            continue  # the others consist of the same headers
        made = tmp_path / f"{name}.o"
        said("g++", *OPTIONS, *flags, "-c", SOURCES / name, "-o", made)
        symbols = [line.split()[-2:] for line in said("nm", made).splitlines()]
        weak = [name for kind, name in symbols if kind in "WVu" and kind != "U"]
        assert not weak, weak
