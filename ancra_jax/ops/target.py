"""Which kind of device a program is traced for: JAX's own, unless somebody says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Return ``'cpu'``, ``'gpu'`` or ``'tpu'``: where the program that is being traced will run."""
    return _platform.get() or jax.default_backend()


def compiler_options(**others: int) -> dict[str, int] | None:
    """Return ``jax.jit``'s options for a large program, with others that only CPUs need.

    XLA's CPU backend by default keeps a context of 1 MiB for each of a program's kernels while it
    compiles, hundreds in a training step; its older emitters, chosen here, do not. A function with
    options cannot be called inside another ``jit``.
    """
    return {"xla_cpu_use_fusion_emitters": False, **others} if platform() == "cpu" else None


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace what is called inside the ``with`` block for another kind of device than JAX's own.

    For compiling on a machine without the device. Functions that were traced before keep their old
    trace.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
