"""JAX's backend as the commands set it up: compiled programs, CPU devices, several processes."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from ancra_jax.errors import UsageError

_MOST_DEVICES = 8  # with more, a batch leaves a device too few rows
_DETERMINISTIC = "xla_gpu_deterministic_ops"
_SILENT_SECONDS = 20  # after which a process that is not heard of counts as dead, and all end


def keep_compiled_programs() -> None:
    """Set JAX's persistent compilation cache: compiling again takes longer than a small run.

    ``JAX_COMPILATION_CACHE_DIR`` chooses another directory, ``JAX_ENABLE_COMPILATION_CACHE=false``
    none. The default lies beside the decoded data, and can be deleted at any time. Every kind of
    processor has its own: programs for one may not run on another that shares the home directory.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        from ancra_jax.data.cache import default_directory  # only what trains needs images

        directory = default_directory() / "compiled" / _processor()
        jax.config.update("jax_compilation_cache_dir", str(directory))
        # Small programs too, unless the environment says from when on: an evaluation has dozens,
        # and reading one takes a tenth of the time of compiling it.
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def give_memory_back() -> None:
    """Let glibc give back what was freed, which it keeps, before and after large compilations."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def after(event: str, duration_secs: float, **_: object) -> None:
        if trim and event.startswith("/jax/core/compile/") and duration_secs > 0.1:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(after)


@contextlib.contextmanager
def missing_device_named() -> Iterator[None]:
    """Turn the error of a JAX that finds no device where ``JAX_PLATFORMS`` sends it into one line.

    JAX starts where it is first used: not before several processes have joined each other.
    """
    try:
        yield
    except (RuntimeError, AssertionError):
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:
            reason = str(error) or "no such device, or JAX is installed without support for it"
            platforms = jax.config.values["jax_platforms"] or ""
            raise UsageError(f"JAX_PLATFORMS={platforms}: JAX cannot start: {reason}") from error
        raise


def use_a_device_per_core() -> None:
    """Make JAX's CPU backend as many devices as the process has cores, at most 8.

    For work on independent rows, in which devices never wait for each other: on two cores an
    attack's step takes about 0.6 times as long. Without effect on accelerators, once JAX has
    started, and where ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` say how many.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] != -1:
        return
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", min(cores, _MOST_DEVICES))


def define_process_flags() -> None:
    """Define the flags of a command that may run as several processes, and must repeat itself."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "This process is one of several. TPU pods and SLURM say which; elsewhere the three flags "
        "below do.",
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "GPU: the same numbers in every run, bit for bit, at some cost of speed. CPUs and TPUs "
        "compute so anyway.",
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def set_up(arguments: flags.FlagValues) -> None:
    """Set what ``--deterministic`` asks for; call before any use of JAX."""
    given = os.environ.get("XLA_FLAGS", "")
    if arguments.deterministic and _DETERMINISTIC not in given:
        os.environ["XLA_FLAGS"] = f"{given} --{_DETERMINISTIC}=true".strip()


def join_processes(arguments: flags.FlagValues) -> None:
    """Join the other processes if ``--distributed`` was given; call before any other use of JAX."""
    named = [arguments.coordinator_address, arguments.num_processes, arguments.process_id]
    flags_named = "--coordinator_address, --num_processes and --process_id"
    given = [value is not None for value in named]
    if any(given) and not arguments.distributed:
        raise UsageError(f"{flags_named} go with --distributed")
    if any(given) and not all(given):
        raise UsageError(f"{flags_named}: give all three or none")
    if not arguments.distributed:
        return
    if all(given):
        host, colon, port = arguments.coordinator_address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise UsageError(
                f"--coordinator_address={arguments.coordinator_address}: must be HOST:PORT"
            )
        if arguments.process_id >= arguments.num_processes:
            raise UsageError(
                f"--process_id={arguments.process_id}: must be less than "
                f"--num_processes={arguments.num_processes}"
            )
    # Its handler of SIGTERM would keep signals from ours, or ours from it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        address, count, number = named
        jax.distributed.initialize(
            address, count, number, heartbeat_timeout_seconds=_SILENT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--distributed: cannot join the other processes: {error}") from error


def _processor() -> str:
    """Return a name for what XLA compiles for when it compiles for the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
