"""Files of configurations and plug-ins: where they are, and what they may import."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ancra_jax.config import local_path
from ancra_jax.errors import UsageError
from ancra_jax.registry import did_you_mean


def find(name: str, field: str) -> Path:
    """Return the file of a configuration: one's own, or else one that comes with the package."""
    path = Path(local_path(name, "--config", directory=False)).absolute()
    if path.is_file():
        if path.suffix != ".py":
            raise UsageError(f"{field}: must be a Python file with get_config, FILE.py:METHOD")
        return path
    name = name.removeprefix("./").removeprefix("configs/")
    if name not in shipped_files():
        raise UsageError(
            f"{field}: there is no file {path}; {did_you_mean(name, shipped_files())}"
            f"of the package's own there are {', '.join(shipped_files())}"
        )
    return shipped() / name


def shipped_files() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return sorted(path.name for path in shipped().glob("*.py") if path.name != "common.py")


def shipped() -> Path:
    """Return ``configs/``: within the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.with_name("configs")


def import_shipped(name: str) -> Any:
    """Import a module of the ``configs/`` that comes with the package."""
    path = shipped() / f"{name}.py"
    with configs_can_be_imported(path):
        return import_file(path, f"configs.{name}")


def import_file(path: Path, name: str) -> Any:
    """Import a file, under ``name``."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def configs_can_be_imported(path: Path) -> Iterator[None]:
    """Let a file import ``configs.NAME`` while this lasts.

    First come the file's neighbours, then modules of the user's own ``configs``, then those that
    come with the package.
    """
    names = lambda: [name for name in sys.modules if name.partition(".")[0] == "configs"]  # noqa: E731
    spec = PathFinder.find_spec("configs", [str(path.parent.parent), *sys.path])
    if spec is None or path.parent == shipped():
        spec = ModuleSpec("configs", None, is_package=True)
    package = importlib.util.module_from_spec(spec)
    package.__path__ = [str(path.parent), *getattr(package, "__path__", ()), str(shipped())]
    before = {name: sys.modules.pop(name) for name in names()}
    try:
        sys.modules["configs"] = package
        if spec.loader is not None:
            spec.loader.exec_module(package)
        yield
    finally:
        for name in names():
            del sys.modules[name]
        sys.modules.update(before)
