"""Which kind of device a program is traced for: JAX's own, unless somebody says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Return ``'cpu'``, ``'gpu'`` or ``'tpu'``: where the program that is being traced will run."""
    return _platform.get() or jax.default_backend()


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace what is called inside the ``with`` block for another kind of device than JAX's own.

    For compiling on a machine without the device. What has been traced before and is called again
    stays as it was traced.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
