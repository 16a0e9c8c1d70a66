"""Commands keep what they compile and use a device per core, unless the user says otherwise."""

import functools
import os

import jax
import pytest
from absl import flags

from ancra_jax.cli.backend import (
    define_process_flags,
    keep_compiled_programs,
    missing_device_named,
    set_up,
)
from tests.support.processes import run_python

COMPILE = """
import jax
from ancra_jax.cli.backend import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""
COUNT = """
import os
from ancra_jax.cli.backend import use_a_device_per_core
use_a_device_per_core()
import jax
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(len(jax.devices()), min(8, cores))
"""
STARTED = """
import jax
before = len(jax.devices())
from ancra_jax.cli.backend import use_a_device_per_core
use_a_device_per_core()
print(len(jax.devices()), before)
"""
NO_DEVICE = """
import jax
from ancra_jax.cli.backend import missing_device_named
from ancra_jax.errors import UsageError
try:
    with missing_device_named():
        jax.devices()
except UsageError as error:
    print(error)
"""


NOTHING = dict.fromkeys(("JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS"))


@pytest.mark.parametrize("given", ["", "--xla_gpu_deterministic_ops=false", "--xla_dump_to=D"])
def test_deterministic_operations_are_asked_of_xla(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    arguments = flags.FlagValues()
    with monkeypatch.context() as patch:
        patch.setattr(flags, "FLAGS", arguments)
        for kind in ("bool", "integer", "string"):
            name = f"DEFINE_{kind}"
            define = functools.partial(getattr(flags, name), flag_values=arguments)
            patch.setattr(flags, name, define)
        define_process_flags()
    arguments(["ancra"])
    set_up(arguments)
    assert os.environ["XLA_FLAGS"] == given
    arguments(["ancra", "--deterministic"])
    for _ in range(2):
        set_up(arguments)
        assert os.environ["XLA_FLAGS"].split() == [
            *given.split(),
            *(["--xla_gpu_deterministic_ops=true"] if "deterministic" not in given else []),
        ]


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("ANCRA_JAX_CACHE", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


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
    chosen = {"ANCRA_JAX_CACHE": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": enabled}
    run_python(COMPILE, **NOTHING | chosen)
    assert any(tmp_path.rglob("*-cache")) == kept


@pytest.mark.parametrize(
    ("code", "chosen", "expected"),
    [
        (COUNT, {}, None),
        (COUNT, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        (COUNT, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
        (STARTED, {}, None),
    ],
    ids=["cores", "jax variable", "xla flags", "already started"],
)
def test_number_of_devices(code, chosen, expected):
    found, otherwise = map(int, run_python(code, **NOTHING | chosen).split())
    assert found == (expected or otherwise)


def test_a_device_that_is_not_there_is_named_and_other_errors_pass():
    assert run_python(NO_DEVICE, JAX_PLATFORMS="nowhere").startswith("JAX_PLATFORMS=nowhere: ")
    with pytest.raises(RuntimeError, match="another"), missing_device_named():
        raise RuntimeError("another")
