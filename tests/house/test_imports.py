"""Imports point down the house, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys

import pytest
import source

TORCH_ROOMS = (
    "ops/torch_ops.py",
    "ops/torch_latent.py",
    "ops/torch_native.py",
    "ops/torch_routing.py",
    "ops/torch_states.py",
    "models/vl/",
    "models/image/",
    "models/video/",
    "models/voice/",
    "models/robot/",
    "diffusion/",
    "train/",
    "scale/",
)


def test_contracts() -> None:
    linter = shutil.which("lint-imports") or shutil.which("lint-imports", path=str(source.Path(sys.executable).parent))
    if linter is None:
        pytest.skip("needs import-linter")
    done = subprocess.run([linter, "--no-cache"], cwd=source.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_stays_in_its_rooms() -> None:
    outside = [
        f"{source.name(path)}:{node.lineno}"
        for path, tree in source.modules().items()
        if not path.relative_to(source.PACKAGE).as_posix().startswith(TORCH_ROOMS)
        for node in ast.walk(tree)
        if _imports(node, "torch")
    ]
    assert not outside, f"torch is imported in {outside}"


def test_only_settings_reads_the_environment() -> None:
    readers = [
        f"{source.name(path)}:{node.lineno}"
        for path, tree in source.modules().items()
        if source.name(path) != "khola/settings.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not readers, f"the environment is read in {readers}; settings are passed in"


@pytest.mark.parametrize("module", ["khola", "khola.cli.main", "khola.errors", "khola.settings", "khola.words"])
def test_light_modules(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'numpy', 'torch', 'tokenizers', 'rich', 'pydantic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _imports(node: ast.AST, library: str) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == library for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == library
