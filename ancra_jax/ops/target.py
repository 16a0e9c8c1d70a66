"""Which kind of device a program is traced for: JAX's own, unless somebody says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import jax

_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """Return ``'cpu'``, ``'gpu'`` or ``'tpu'``: where the program that is being traced will run."""
    return _platform.get() or jax.default_backend()


def compiler_options(**others: int) -> dict[str, int | str] | None:
    """Return ``jax.jit``'s options for a large program, with others that only CPUs need.

    XLA's CPU backend by default keeps a context of 1 MiB for each of a program's kernels while it
    compiles, hundreds in a training step; its older emitters, chosen here, do not. On a single
    device convolutions are left to Eigen, which divides every one of them among the cores: YNNPACK,
    XLA's default (jax 0.10), computes those of 64 channels on one. Options that this version of XLA
    does not have are left out. A function with options cannot be called inside another ``jit``.
    """
    if platform() != "cpu":
        return None
    options: dict[str, int | str] = {"xla_cpu_use_fusion_emitters": False, **others}
    if jax.device_count() == 1:
        products_and_sums = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        options["xla_cpu_experimental_ynn_fusion_type"] = products_and_sums
    return {name: value for name, value in options.items() if _exists(name, value)}


@cache
def _exists(option: str, value: int | str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


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
