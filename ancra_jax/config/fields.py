"""Fields of a configuration with what they allow, and plain data read into them."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ancra_jax.errors import UsageError


def number(
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A numeric field with its allowed range, bounds included but for ``above``.

    A setting that is added after a release gets a ``default``, the behaviour before it existed, so
    that the directories of older runs stay readable.
    """
    metadata = {"at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(metadata=metadata, default=default)


def choice(*allowed: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that takes one of a few words; ``default`` as for numbers."""
    return dataclasses.field(metadata={"allowed": allowed}, default=default)


def build(cls: Any, values: Any, path: str) -> Any:
    """Reads nested plain data into a dataclass of such fields.

    Args:
      cls: the dataclass; its fields may be such dataclasses.
      values: a mapping, or a ConfigDict.
      path: what to call it in errors.

    Raises:
      UsageError: a field that does not exist or is missing, has another type or is out of range.
    """
    if not isinstance(values, (Mapping, ConfigDict)):
        raise UsageError(f"{path}={values!r}: must be a group of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    built = {}
    for key, value in values.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(fields)}"
            raise UsageError(f"{path}.{key}: there is no such setting; {hint}")
        built[key] = _convert(fields[key], value, f"{path}.{key}")
    missing = [
        key
        for key, field in fields.items()
        if key not in built and field.default is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{path}.{missing[0]}: this setting is missing")
    return cls(**built)


def _convert(field, value, path):
    if dataclasses.is_dataclass(field.type):
        return build(field.type, value, path)
    if field.type == tuple[int, ...]:
        if isinstance(value, str) or not all(isinstance(item, int) for item in value):
            raise UsageError(f"{path}={value!r}: must be a sequence of whole numbers")
        return tuple(value)
    if field.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, field.type) or (isinstance(value, bool) and field.type is not bool):
        raise UsageError(f"{path}={value!r}: must be of type {field.type.__name__}")
    _check_range(field.metadata, value, path)
    return value


def _check_range(limits, value, path):
    if "allowed" in limits and value not in limits["allowed"]:
        allowed = ", ".join(map(repr, limits["allowed"]))
        close = difflib.get_close_matches(value, limits["allowed"], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"{path}={value!r}: allowed are {allowed}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{path}={value}: must be finite")
    if limits.get("at_least") is not None and value < limits["at_least"]:
        raise UsageError(f"{path}={value}: must be at least {limits['at_least']}")
    if limits.get("above") is not None and value <= limits["above"]:
        raise UsageError(f"{path}={value}: must be greater than {limits['above']}")
    if limits.get("at_most") is not None and value > limits["at_most"]:
        raise UsageError(f"{path}={value}: must be at most {limits['at_most']}")
