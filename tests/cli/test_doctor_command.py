"""`khola doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from khola.evals.sandbox.level import Probe
from khola.evals.sandbox.process import Layers
from khola.native.probe import Gpu, Machine
from tests.cli.command import Command, Done
from tests.needs import needs_library

MACHINE = Machine(
    cpu="Test CPU",
    architecture="x86_64",
    system="Linux 6.1",
    cores=2,
    instruction_sets=("avx2", "avx512f"),
    memory_bytes=24 * 10**9,
    available_bytes=20 * 10**9,
    disk_free_bytes=10**11,
    read_bytes_s=22e9,
)
Checks = dict[str, dict[str, str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put another machine below the command."""

    def put(**changes: object) -> None:
        monkeypatch.setattr("khola.native.probe.probe", lambda *_, **__: replace(MACHINE, **changes))  # type: ignore[arg-type]

    put()
    return put


def checks(done: Done) -> Checks:
    """The checks by name."""
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


def test_what_is_found(khola_says: Command, machine: Callable[..., None]) -> None:
    done = khola_says("doctor", "--json")
    assert done.code == 0
    found = checks(done)
    assert "avx512f" in found["processor"]["found"] and "Test CPU" in found["processor"]["found"]
    assert found["memory"]["found"] == "20.0 of 24.0 GB available, read at 22.0 GB/s"
    assert found["gpu"]["found"] == "none found; none is needed"
    assert "numpy " in found["libraries"]["found"] and found["libraries"]["state"] == "ok"
    assert found["models"]["state"] == "warn" and found["models"]["next_step"] == "khola pull smollm2-135m-instruct"
    assert found["terminal"]["found"] == "utf-8, messages in en"


def test_words(khola_says: Command, machine: Callable[..., None]) -> None:
    done = khola_says("doctor")
    assert done.code == 0
    assert "→ khola pull smollm2-135m-instruct" in done.out
    assert "কোর: 2" in khola_says("doctor", "--lang", "bn").out


def test_little_memory_and_a_gpu(khola_says: Command, machine: Callable[..., None]) -> None:
    machine(available_bytes=5 * 10**8, gpus=(Gpu(name="Test GPU", memory_bytes=16 * 10**9),))
    found = checks(khola_says("doctor", "--json"))
    assert found["memory"]["state"] == "warn" and "khola fit" in found["memory"]["next_step"]
    assert found["gpu"]["found"] == "Test GPU (16 GB)"


def test_missing_library_is_bad(khola_says: Command, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("khola.cli.doctor.LIBRARIES", ("numpy", "no-such-library"))
    done = khola_says("doctor", "--json")
    assert done.code == 1
    assert checks(done)["libraries"]["state"] == "bad" and "no-such-library" in checks(done)["libraries"]["next_step"]


def test_offline(khola_says: Command, machine: Callable[..., None]) -> None:
    assert checks(khola_says("doctor", "--json", "--offline"))["network"]["found"] == "switched off"


def test_caches_of_other_programs(khola_says: Command, machine: Callable[..., None], home: Path) -> None:
    assert "caches" not in checks(khola_says("doctor", "--json"))
    (home / ".ollama" / "models" / "manifests").mkdir(parents=True)
    assert "ollama" in checks(khola_says("doctor", "--json"))["caches"]["found"]


def test_what_can_hold_programs(khola_says: Command, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    level = Layers(seccomp=True)
    monkeypatch.setattr("khola.evals.sandbox.level.candidates", lambda: (level,))
    monkeypatch.setattr("khola.evals.sandbox.level.probed", lambda _: (Probe(name="read", held=True, said="x"),) * 12)
    assert "seccomp is used, 12 of 12 attacks stopped" in checks(khola_says("doctor", "--json"))["sandbox"]["found"]
    monkeypatch.setattr("khola.evals.sandbox.level.probed", lambda _: (Probe(name="read", held=False, said="x"),))
    found = checks(khola_says("doctor", "--json"))["sandbox"]
    assert found["state"] == "warn" and "seccomp does not stop read" in found["found"] and "code is not run here" in found["next_step"]
    monkeypatch.setattr("khola.evals.sandbox.level.candidates", lambda: ())
    assert checks(khola_says("doctor", "--json"))["sandbox"]["state"] == "warn"


def test_damaged_record_is_bad(khola_says: Command, machine: Callable[..., None], home: Path) -> None:
    folder = home / "khola" / "models" / "damaged"
    folder.mkdir(parents=True)
    (folder / "khola.json").write_text("{")
    done = khola_says("doctor", "--json")
    bad = [check for check in json.loads(done.out)["checks"] if check["state"] == "bad"]
    assert done.code == 1 and "damaged" in bad[0]["found"]


def test_a_folder_that_cannot_be_made(khola_says: Command, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    done = khola_says("doctor", "--json")
    assert done.code == 1 and checks(done)["folder"]["state"] == "bad"


SKYLAKE = ("fma", "f16c", "avx2", "avx512f", "avx512bw")
SAPPHIRE_RAPIDS = (*SKYLAKE, "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


@pytest.mark.parametrize(
    ("used", "flags", "why"),
    [
        ("avx2", SKYLAKE[:3], ""),
        ("avxvnni", (*SKYLAKE[:3], "avx_vnni"), ""),
        ("avx2", SKYLAKE, "; avx512 would need avx512_vnni, avx512_bf16 too"),
        ("avx512", SAPPHIRE_RAPIDS, "; the processor has amx, but this build or this system does not"),
        ("amx", SAPPHIRE_RAPIDS, ""),
        ("neon", ("asimd",), ""),
        ("neon", ("asimd", "asimddp"), "; the processor has dotprod, but this build or this system does not"),
        ("scalar", ("sse4_2",), ""),
        ("scalar", SKYLAKE[:3], "; the processor has avx2, but this build or this system does not"),
    ],
)
def test_why_no_better_instruction_set_is_used(
    used: str, flags: tuple[str, ...], why: str, khola_says: Command, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from khola.native import lib, probe

    monkeypatch.setattr(lib, "available_isas", lambda: (used, "scalar"))
    monkeypatch.setattr(lib, "choose_isa", lambda wanted: wanted or used)
    monkeypatch.setattr(probe, "instruction_sets", lambda *_: flags)
    found = checks(khola_says("doctor", "--json"))["native"]["found"]
    assert found.startswith(f"{used}, the best") and found.endswith(f"{lib.library_path()}{why}")


def test_the_native_library_and_what_stands_in_its_way(
    khola_says: Command, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from khola.errors import NoKernel
    from khola.native import lib

    monkeypatch.setattr(lib, "available_isas", lambda: ("avx512", "scalar"))
    monkeypatch.setattr(lib, "choose_isa", lambda wanted: wanted or "avx512")
    found = checks(khola_says("doctor", "--json"))
    assert found["native"]["found"].startswith("avx512, the best that library and processor share (avx512, scalar)")
    assert "--interpreter numpy" in found["numpy"]["found"]
    monkeypatch.setenv("KHOLA_ISA", "scalar")
    found = checks(khola_says("doctor", "--json"))
    assert found["native"]["state"] == "warn" and "KHOLA_ISA asks for" in found["native"]["found"]
    monkeypatch.setenv("KHOLA_ISA", "sse")
    assert checks(khola_says("doctor", "--json"))["native"]["found"] == "KHOLA_ISA is 'sse'; this machine has avx512, scalar"

    def none() -> None:
        raise NoKernel("no native library was built here")

    monkeypatch.setattr(lib, "available_isas", none)
    done = khola_says("doctor", "--json")
    assert done.code == 0 and checks(done)["native"] == {
        "name": "native",
        "found": "no native library was built here",
        "state": "warn",
        "next_step": "",
    }
    assert "because native cannot" in checks(done)["numpy"]["found"]


@needs_library
def test_packed_weights_are_checked_on_demand(khola_says: Command, machine: Callable[..., None], tmp_path: Path) -> None:
    from khola.native.packed_file import PackedWriter
    from khola.settings import from_environment

    folder = from_environment().packed
    folder.mkdir(parents=True)
    path = folder / "some-model.khola"
    with path.open("wb") as out:
        PackedWriter(out, "key", {}).finish()
    assert checks(khola_says("doctor", "--json"))["packed"]["found"] == "1 files, 0.0 GB of at most 20 GB"
    done = khola_says("doctor", "--json", "--verify")
    assert done.code == 0 and "every byte checked" in checks(done)["packed"]["found"]
    path.write_bytes(path.read_bytes()[:-1])
    done = khola_says("doctor", "--json", "--verify")
    assert done.code == 1 and checks(done)["packed"]["state"] == "bad"
    assert "delete some-model.khola" in checks(done)["packed"]["next_step"]
