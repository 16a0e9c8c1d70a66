"""Commands keep what they compile, where the user says or in a place of their own."""

import os
import subprocess
import sys

import jax
import pytest

from ancra_jax.cli.backend import keep_compiled_programs

COMPILE = """
import jax
from ancra_jax.cli.backend import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("ANCRA_JAX_CACHE", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_default_lies_in_the_cache_and_depends_on_the_processor(nothing_chosen, tmp_path):
    keep_compiled_programs()
    chosen = jax.config.jax_compilation_cache_dir
    assert os.path.dirname(chosen) == str(tmp_path / "compiled")
    assert os.path.basename(chosen).startswith(os.uname().machine)


def test_what_the_user_chose_stays(nothing_chosen):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


@pytest.mark.parametrize(("enabled", "kept"), [("true", True), ("false", False)])
def test_programs_are_kept_unless_the_user_wants_none(tmp_path, enabled, kept):
    settings = {"ANCRA_JAX_CACHE": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": enabled}
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run(
        [sys.executable, "-c", COMPILE], env=inherited | settings, check=True, timeout=120
    )
    assert any(tmp_path.rglob("*-cache")) == kept
