"""The only reader of environment variables: where things lie, which language, whether the network may be used.

Every room gets a `Settings` passed in; only command lines and servers call `from_environment`.
"""

from __future__ import annotations

import locale
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from khola.errors import UnknownOption

BARE = frozenset(
    {
        *("PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"),
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"),
    }
)
"""Variables that processes started by khola keep."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the surroundings of this process ask for."""

    home: Path
    """Folder of pulled models, locks and histories (`KHOLA_HOME`)."""
    user_home: Path
    """The user's home folder, where other programs keep their model caches."""
    offline: bool = False
    """Never open a socket (`KHOLA_OFFLINE`)."""
    language: str = "en"
    """Language of messages, "en" or "bn" (`KHOLA_LANG`, else the locale)."""
    threads: int = 0
    """Threads of the engine; 0 means one a core (`KHOLA_THREADS`)."""
    isa: str = ""
    """Instruction set to force; empty means the best one here (`KHOLA_ISA`)."""
    packed_bytes: int = 20_000_000_000
    """Disk that packed weights may take, all models together; 0 keeps none (`KHOLA_PACKED_GB`)."""
    verify: bool = False
    """Check every byte of packed weights before they are used (`KHOLA_VERIFY`)."""
    colour: bool = True
    """Whether a terminal may be coloured (`NO_COLOR`, `TERM=dumb`)."""
    hub: str = "https://huggingface.co"
    """Address of the model hub (`HF_ENDPOINT`)."""
    hub_token: str = field(default="", repr=False)
    """Access token of the hub (`HF_TOKEN`)."""
    modelscope: str = "https://modelscope.cn"
    """Address of ModelScope (`MODELSCOPE_ENDPOINT`)."""
    caches: Mapping[str, Path] = field(default_factory=dict)
    """Folders of other programs' model caches: "ollama", "lmstudio", "llama.cpp", "hub"."""

    @property
    def models(self) -> Path:
        """Folder in which models lie as plain files, one folder a model."""
        return self.home / "models"

    @property
    def packed(self) -> Path:
        """Folder of packed weights, which the next start maps instead of packing anew."""
        return self.home / "packed"


def from_environment(env: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from environment variables.

    Raises:
        UnknownOption: a variable of khola's has a value that it cannot have.
    """
    user_home = Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())
    data = Path(env.get("XDG_DATA_HOME") or user_home / ".local" / "share")
    return Settings(
        home=Path(env.get("KHOLA_HOME") or data / "khola"),
        user_home=user_home,
        offline=_switch(env, "KHOLA_OFFLINE"),
        language=_language(env),
        threads=_count(env, "KHOLA_THREADS"),
        isa=env.get("KHOLA_ISA", ""),
        packed_bytes=_count(env, "KHOLA_PACKED_GB", default=20, limit=1_000_000) * 1_000_000_000,
        verify=_switch(env, "KHOLA_VERIFY"),
        colour="NO_COLOR" not in env and env.get("TERM") != "dumb",
        hub=env.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"),
        hub_token=env.get("HF_TOKEN", ""),
        modelscope=env.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn").rstrip("/"),
        caches=_caches(env, user_home),
    )


def bare_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process needs of the environment that is told everything else: where programs and libraries lie, and nothing secret."""
    return {name: value for name, value in env.items() if name.upper() in BARE}


def _switch(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in ("", "0", "no", "false", "off"):
        return False
    if value in ("1", "yes", "true", "on"):
        return True
    raise UnknownOption("{name} is {value!r}; expected 0 or 1", name=name, value=value)


def _count(env: Mapping[str, str], name: str, *, default: int = 0, limit: int = 4096) -> int:
    value = env.get(name, "").strip() or str(default)
    if not value.isdecimal() or int(value) > limit:
        raise UnknownOption("{name} is {value!r}; expected a number from 0 to {limit}", name=name, value=value, limit=limit)
    return int(value)


def _language(env: Mapping[str, str]) -> str:
    asked = env.get("KHOLA_LANG", "").strip().lower()
    if asked:
        if asked not in ("en", "bn"):
            raise UnknownOption("{name} is {value!r}; expected en or bn", name="KHOLA_LANG", value=asked)
        return asked
    spoken = env.get("LC_ALL") or env.get("LC_MESSAGES") or env.get("LANG") or locale.getlocale()[0] or ""
    return "bn" if spoken.lower().startswith("bn") else "en"


def _caches(env: Mapping[str, str], user_home: Path) -> dict[str, Path]:
    """Where other programs keep models, by their own variables and defaults."""
    cache = Path(env.get("XDG_CACHE_HOME") or user_home / ".cache")
    hub_home = Path(env.get("HF_HOME") or cache / "huggingface")
    return {
        "ollama": Path(env.get("OLLAMA_MODELS") or user_home / ".ollama" / "models"),
        "lmstudio": user_home / ".lmstudio" / "models",
        "llama.cpp": Path(env.get("LLAMA_CACHE") or cache / "llama.cpp"),
        "hub": Path(env.get("HF_HUB_CACHE") or hub_home / "hub"),
    }
