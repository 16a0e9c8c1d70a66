"""Puts this directory on the import path, and lets tests share what they compile."""

import gc
import os
import pathlib

import jax
import pytest

_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
for name, value in _CACHE.items():
    os.environ.setdefault(name, value)  # for the processes that tests start
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees what a module has compiled: a worker that kept all of it would hold gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def quick_compilation():
    """For tests that compile much and compute little; numbers change by rounding alone."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
