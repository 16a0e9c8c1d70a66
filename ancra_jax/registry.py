"""Things that a configuration calls by name: networks, methods, data sets and so on."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from ancra_jax.errors import UsageError

Thing = TypeVar("Thing")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` with the name closest to a mistyped one, or nothing."""
    close = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


class Registry(Generic[Thing]):
    """Things of one kind, each under a name of its own.

    A name may have numbers in it: ``'wide_resnet{depth}_{factor}'`` stands for
    ``'wide_resnet28_10'`` and all others.
    """

    def __init__(self, kind: str):
        """Make an empty registry; ``kind`` is what errors call a thing, ``'method'``."""
        self.kind = kind
        self._things: dict[str, Thing] = {}
        self._examples: list[str] = []

    def register(self, name: str, *, examples: Sequence[str] = ()) -> Callable[[Thing], Thing]:
        """Return a decorator that makes a thing known under a name.

        Args:
          name: what a configuration calls it, perhaps with numbers, ``'mlp{hidden}'``.
          examples: names with these numbers filled in, to suggest where one is mistyped.

        Raises:
          UsageError: the name is taken.
        """
        if name in self._things or self._find(name) is not None:
            raise UsageError(f"{self.kind} {name!r} is registered already: choose another name")

        def add(thing: Thing) -> Thing:
            self._things[name] = thing
            self._examples.extend(examples or (name,))
            return thing

        return add

    def get(self, name: str, field: str = "") -> Thing:
        """Return the thing of a name; arguments and errors are those of `find`."""
        return self.find(name, field)[0]

    def find(self, name: str, field: str = "") -> tuple[Thing, dict[str, int]]:
        """Return the thing of a name, and the numbers in the name.

        Args:
          name: as it was registered, with numbers in the place of braces.
          field: the setting that names it, which the error repeats.

        Raises:
          UsageError: there is none; the error names those there are and the closest.
        """
        found = self._find(name)
        if found is None:
            given = f"{field}={name!r}: there is no such {self.kind}"
            if not field:
                given = f"there is no {self.kind} {name!r}"
            hint = did_you_mean(name, self._examples)
            raise UsageError(f"{given}; {hint}allowed are {', '.join(self.names())}")
        return found

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration."""
        return tuple(self._things)

    def _find(self, name: str) -> tuple[Thing, dict[str, int]] | None:
        for known, thing in self._things.items():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(known))
            match = re.fullmatch(pattern, str(name))
            if match:
                return thing, {key: int(value) for key, value in match.groupdict().items()}
        return None
