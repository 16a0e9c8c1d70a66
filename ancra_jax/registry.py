"""Things that a configuration calls by name: networks, methods, data sets and so on."""

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from ancra_jax.errors import UsageError

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """Things of one kind, each under a name of its own."""

    def __init__(self, kind: str):
        """Makes an empty registry; ``kind`` is what errors call a thing, ``'method'``."""
        self.kind = kind
        self._things: dict[str, Thing] = {}

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Return a decorator that makes a thing known under a name.

        Raises:
          UsageError: the name is taken.
        """
        if name in self._things:
            raise UsageError(f"{self.kind} {name!r} is registered already: choose another name")

        def add(thing: Thing) -> Thing:
            self._things[name] = thing
            return thing

        return add

    def get(self, name: str, field: str = "") -> Thing:
        """Return the thing of a name.

        Args:
          name: as it was registered.
          field: the setting that names it, which the error repeats.

        Raises:
          UsageError: there is none; the error names those there are and the closest.
        """
        if name in self._things:
            return self._things[name]
        close = difflib.get_close_matches(str(name), self._things, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        given = (
            f"{field}={name!r}: there is no such {self.kind}"
            if field
            else (f"there is no {self.kind} {name!r}")
        )
        raise UsageError(f"{given}; {hint}allowed are {', '.join(self.names())}")

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration."""
        return tuple(self._things)
