"""What is chosen, and that nothing is run where nothing holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from khola.errors import NoSandbox
from khola.evals.sandbox import kernel, level
from khola.evals.sandbox.filters import MACHINES, filter_of
from khola.evals.sandbox.level import Probe
from khola.evals.sandbox.pool import Pool
from khola.evals.sandbox.process import Layers
from tests.needs import needs_seccomp


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    level.chosen.cache_clear()
    yield
    level.chosen.cache_clear()


def test_nothing_is_chosen_without_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "has_seccomp", lambda: False)
    with pytest.raises(NoSandbox, match="no seccomp"):
        level.chosen()
    with pytest.raises(NoSandbox):
        Pool(1)


def test_a_level_that_fails_its_own_test_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "has_seccomp", lambda: True)
    monkeypatch.setattr(kernel, "landlock_version", lambda: 7)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/bwrap")
    levels = level.candidates()
    assert [one.name for one in levels] == ["bubblewrap+landlock+seccomp", "landlock+seccomp", "seccomp"]
    monkeypatch.setattr(level, "probed", lambda layers: (Probe(name="tcp", held=layers.name == "seccomp", said=""),))
    assert level.chosen() == levels[2]
    level.chosen.cache_clear()
    monkeypatch.setattr(level, "probed", lambda layers: (Probe(name="tcp", held=False, said=""),))
    with pytest.raises(NoSandbox, match="tcp"):
        level.chosen()


@needs_seccomp
def test_the_self_test_tells_what_gets_out() -> None:
    lost = {probe.name for probe in level.probed(Layers()) if not probe.held}
    assert {"read", "tcp", "udp", "unix", "fork", "kill"} <= lost and "memory" not in lost and "time" not in lost
    assert len(level.probed(level.chosen())) == 12 and all(probe.held for probe in level.probed(level.chosen()))
    missing = level.probed(Layers(seccomp=True, bubblewrap="/no/such/bwrap"))
    assert [(probe.name, probe.held) for probe in missing] == [("start", False)]


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("opening", [True, False])
def test_filters_are_whole(name: str, opening: bool) -> None:
    """Every jump stays inside, and the last step refuses."""
    steps = filter_of(MACHINES[name], opening=opening)
    count = len(steps) // 8
    assert len(steps) % 8 == 0 and count < 4096 and steps[-8:] == bytes.fromhex("0600000001000500")
    for at in range(count):
        code, yes, no = steps[8 * at] | steps[8 * at + 1] << 8, steps[8 * at + 2], steps[8 * at + 3]
        assert code not in (0x15, 0x35, 0x45) or at + 1 + max(yes, no) < count
