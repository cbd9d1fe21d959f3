"""Hostile repositories loaded, asked and shown under an audit hook: no code of theirs runs, nothing is opened but their own folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import khola
from tests.loader.test_hostile_models import CODE_CONFIGS
from tests.loader.whole_models import dump, gguf_of, rewritten, write_folder

ROOT = Path(khola.__file__).resolve().parent.parent
PROGRAM = """
import json, os, sys, sysconfig
from pathlib import Path
from khola.api import load
from khola.api.header import header_of
from khola.api.fit import fit
from khola.api.library import listed
from khola.errors import KholaError
from khola.settings import Settings

places, home = json.loads(sys.argv[1]), Path(sys.argv[2])
settings = Settings(home=home, user_home=home, offline=True)
OURS = [os.path.realpath(path) for path in
        (Path(sys.argv[3]) / "khola", sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), home)]
MACHINE = ("/proc/", "/sys/", "/dev/urandom", "/dev/null", "/etc/localtime", "/usr/share/zoneinfo")
NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.", "ctypes.dlopen",
         "os.rmdir", "os.chmod", "os.link", "os.symlink", "shutil.", "webbrowser.", "urllib.")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.utime")
here, seen = [""], []
before = [""]  # a thread of a load that was refused may still be reading its own files


def stays(path):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return True  # a handle that is open already
    path = os.path.realpath(os.fsdecode(path))
    roots = (*OURS, here[0], before[0] or here[0])
    return path.startswith(MACHINE) or any(path == root or path.startswith(root + os.sep) for root in roots)


def at_home(path):
    path = os.path.realpath(os.fsdecode(path))
    return path == OURS[-1] or path.startswith(OURS[-1] + os.sep)


def hook(event, args):
    if not here[0]:
        return
    if event.startswith(CHANGES):  # what was packed for the next start lies in khola's own folder
        if not all(at_home(path) for path in args if isinstance(path, (str, bytes, os.PathLike))):
            seen.append((here[0], event, repr(args)[:200]))
    elif event.startswith(NEVER) and not (event == "ctypes.dlopen" and stays(args[0])):
        seen.append((here[0], event, repr(args)[:200]))
    elif event in ("open", "os.listdir", "os.scandir"):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+")
        if not stays(args[0]) or (writes and os.path.realpath(args[0]) != os.devnull and not at_home(args[0])):
            seen.append((here[0], event, repr(args)[:200]))
    elif event == "exec" and not stays(args[0].co_filename) and not args[0].co_filename.startswith("<"):
        seen.append((here[0], event, args[0].co_filename))
    elif event == "exec" and args[0].co_filename.startswith("<") and not args[0].co_filename.startswith(("<frozen", "<string>")):
        seen.append((here[0], event, args[0].co_filename))
    elif event == "import" and "evil" in str(args):
        seen.append((here[0], event, repr(args)[:200]))


class Forbidden:
    def find_spec(self, name, path=None, target=None):
        assert "evil" not in name, name
        if name.split(".")[0] in ("torch", "transformers", "jinja2", "huggingface_hub"):
            seen.append((here[0], "import", name))


sys.meta_path.insert(0, Forbidden())
sys.addaudithook(hook)
ends = []
for place in places:
    before[0], here[0] = here[0], os.path.realpath(place)
    for ask in (
        lambda: load(place, settings=settings, cache_tokens=64).complete("the inner", sampling={"max_tokens": 2}) and "answered",
        lambda: load(place, settings=settings, cache_tokens=64).chat("the inner", sampling={"max_tokens": 2}) and "answered",
        lambda: header_of(place, settings) and "read",
        lambda: fit(place, settings=settings) and "planned",
    ):
        try:
            ends.append(ask())
        except KholaError as wrong:
            ends.append(wrong.code)
here[0] = ""
print(json.dumps({"seen": seen, "ends": ends, "evil": [name for name in sys.modules if "evil" in name]}))
"""


@pytest.mark.slow
def test_nothing_of_a_repository_runs_and_nothing_else_is_opened(tmp_path: Path) -> None:
    canary, places = tmp_path / "canary", []
    code = f"open({str(canary)!r}, 'w').write('ran')"
    template = "{{ lipsum.__globals__.os.system('touch " + str(canary) + "') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    for number, (changes, _) in enumerate(CODE_CONFIGS):
        folder = write_folder(tmp_path / "repositories" / f"m{number}", changes=changes)
        for name in (
            "evil.py",
            "modeling_evil.py",
            "__init__.py",
            "khola.py",
            "numpy.py",
            "sitecustomize.py",
            "custom_generate/generate.py",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(code, encoding="utf-8")
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        dump(folder / "tokenizer_config.json", {**settings, "auto_map": {"AutoTokenizer": ["evil.T", None]}, "chat_template": template})
        places.append(str(folder))
    made = gguf_of().string("tokenizer.chat_template", template).string("general.source.url", "file:///etc/passwd")
    places.append(str(rewritten(tmp_path / "repositories" / "evil.gguf", made.encoded())))
    done = subprocess.run(
        [sys.executable, "-P", "-B", "-W", "error", "-c", PROGRAM, json.dumps(places), str(tmp_path / "home"), str(ROOT)],
        cwd=tmp_path / "repositories" / "m0", env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["seen"] == [] and told["evil"] == []
    assert not canary.exists()
    ends = [told["ends"][at : at + 4] for at in range(0, len(told["ends"]), 4)]
    assert len(ends) == len(places)
    for (_, expected), end in zip(CODE_CONFIGS, ends, strict=False):
        # A template that nobody knows is never run unasked, whatever else is right about the model.
        assert end[:2] == (["answered", "no_chat_template"] if expected == "loaded" else [expected] * 2)
    assert ends[-1][:2] == ["answered", "no_chat_template"]


def test_the_hook_sees_what_it_must_see(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for crime in ("open('/etc/passwd')", "__import__('os').system('true')", "__import__('socket').socket()", "open('x', 'w')"):
        program = PROGRAM.replace("for place in places:\n", f"for place in places:\n    here[0] = place\n    {crime}\n", 1)
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-P", "-B", "-c", program, json.dumps([str(place)]), str(tmp_path / "home"), str(ROOT)],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["seen"], crime
