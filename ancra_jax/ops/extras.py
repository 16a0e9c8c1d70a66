"""Names that are imported when they are used, and what to install where a module is missing."""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from ancra_jax.errors import UsageError

# Modules whose names differ from those of the distributions that install them.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "markdown_it": "markdown-it-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
}


class MissingExtraError(UsageError, ImportError):
    """A module is not installed that an extra of this package brings."""


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names are imported when they are first used.

    Args:
      package: its ``__name__``.
      homes: the module of every name, below the package; these modules are names too.
    """

    def get(name: str) -> Any:
        home = homes.get(name, name)
        if home not in homes.values():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with explained():
            module = importlib.import_module(f"{package}.{home}")
        return getattr(module, name) if name in homes else module

    return get


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say of a module that is missing which extra brings it, in a `MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        raise MissingExtraError(
            f'{error.name} is not installed, which this needs: pip install "ancra-jax[{extra}]"'
        ) from error


def extra_of(module: str) -> str | None:
    """Return the name of the smallest extra that brings a module; None if there is none."""
    top = module.partition(".")[0]
    wanted = _normalised(_DISTRIBUTIONS.get(top, top))
    extras: dict[str, set[str]] = {}
    try:
        requirements = metadata.requires("ancra-jax") or []
    except metadata.PackageNotFoundError:  # it is not installed, only on the path
        return None
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*;.*\bextra == ['\"]([\w-]+)", requirement)
        if found:
            extras.setdefault(found[2], set()).add(_normalised(found[1]))
    fitting = [extra for extra, names in extras.items() if wanted in names]
    return min(fitting, key=lambda extra: len(extras[extra]), default=None)


def _normalised(name: str) -> str:
    """Return the one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()
