"""Makes tests compile quickly, share what they compile, and forget it in time."""

import gc
import importlib.metadata
import os
import pathlib

COMPILATION = {
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    # Most tests compile much and compute little; those that do not are marked `optimized`.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
}
for name, value in COMPILATION.items():
    os.environ.setdefault(name, value)  # before JAX reads them; for the processes of tests too
# By default XLA compiles every program in many parts, each with a share of the cost of all, and
# each fusion by way of MLIR, which takes more than half of the time of such small programs. A flag
# that XLA does not know ends the process, and from jax 0.11.2 on it has MLIR alone.
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
gc.set_threshold(50_000, 20, 100)  # tracing makes many objects and little garbage

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Frees what a module has compiled: a worker that kept all of it would hold gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def optimization(request):
    """Compiles the programs of tests that are marked `optimized` with all optimisations."""
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
