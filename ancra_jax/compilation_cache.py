"""Compiled programs are kept between commands: compiling again takes longer than a small run."""

import hashlib
import platform
from pathlib import Path

import jax

from ancra_jax.data.cache import default_directory


def keep_compiled_programs() -> None:
    """Sets JAX's persistent compilation cache, unless the user has chosen one or none.

    ``JAX_COMPILATION_CACHE_DIR`` chooses another directory, ``JAX_ENABLE_COMPILATION_CACHE=false``
    none. The default lies beside the decoded data, and can be deleted at any time. Every kind of
    processor has its own: programs for one may not run on another that shares the home directory.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        directory = default_directory() / "compiled" / _processor()
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _processor() -> str:
    """A name for what XLA compiles for when it compiles for the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
