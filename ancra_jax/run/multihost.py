"""Several processes: they connect before they compile, stop at the same step, and end together."""

import contextlib
import ctypes
import inspect
import os
import platform
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from ancra_jax.errors import NonFiniteLossError, UsageError
from ancra_jax.ops.target import compiler_options
from ancra_jax.run import sharding
from ancra_jax.run.workdir import holds_run

_CONNECT_SECONDS = 600  # how long the first of the processes waits for the last
_HOST_BYTES = 64  # of the name of a host

shown_within = 60.0
"""Seconds in which a shared disk shows all hosts what one of them has written."""


def connect(mesh: Mesh) -> None:
    """Connect the devices of all processes; at once, if there is one process.

    Connections are made by the first collective that needs them, and on CPU that waits no longer
    than 30 seconds for the others. Later ones wait for as long as it takes, so that processes may
    compile and load their data at a speed of their own.
    """
    if jax.process_count() == 1:
        return
    ocp.multihost.get_barrier_sync_fn()(key="connect", timeout_ms=1000 * _CONNECT_SECONDS)
    add = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
    jax.block_until_ready(add(_per_device(mesh, False)))
    multihost_utils.sync_global_devices("connect")  # Orbax connects the processes in this way


def check_shared(workdir: str) -> None:
    """Wait for the first process, which has made the run's directory; check that all see the run.

    Raises:
      UsageError: in all processes, that some do not see it.
    """
    sharding.barrier("workdir")
    if jax.process_count() == 1:
        return
    deadline = time.monotonic() + shown_within
    while not (sees := holds_run(workdir)) and time.monotonic() < deadline:
        time.sleep(0.5)
    host = platform.node().encode()[:_HOST_BYTES].ljust(_HOST_BYTES)
    mine = np.asarray(sees), np.frombuffer(host, np.uint8)
    seeing, hosts = multihost_utils.process_allgather(mine)
    names = [
        f"process {number} on {hosts[number].tobytes().decode(errors='replace').strip()}"
        for number in np.flatnonzero(~seeing)
    ]
    if names:
        raise UsageError(
            f"--workdir={workdir}: {', '.join(names[:4])}{', ...' if names[4:] else ''} cannot see "
            "the run that process 0 has there; all processes must share the directory"
        )


# ---- To stop at the same step ----


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped at step {step}, which is saved; the same command continues")
        self.exit_status = 128 + number


class StopSignal:
    """Takes SIGTERM and SIGINT as a wish to stop after the step; a second one acts at once."""

    number: int | None = None  # of the signal that came

    def __enter__(self) -> "StopSignal":
        self._previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread, as in some notebooks and tests
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, self._previous[number])


class StoppableStep:
    """A step of training, after which the processes agree whether to stop.

    A signal may reach only one process, or several processes in different steps. So each process
    gives its wish to stop to the step, which returns whether any process has one. All read this
    answer after the next step, when it is there without waiting. A single process needs no answer.
    """

    def __init__(self, step: Callable[..., tuple[Any, Any]], mesh: Mesh):
        """Take a step ``(state, *rest) -> (state, metrics)``; it gives its state away."""
        step, options = inspect.unwrap(step), compiler_options()
        self._step = jax.jit(step, donate_argnums=0, compiler_options=options)
        self._answer: Bool[Array, ""] | None = None  # to the wishes given to the step before
        self._wishes: dict[bool, Bool[Array, "devices"]] = {}
        if jax.process_count() > 1:
            self._wishes = {wish: _per_device(mesh, wish) for wish in (False, True)}

            def agree(wishes: Bool[Array, "devices"], *arguments: Any) -> tuple[Any, ...]:
                return *step(*arguments), jnp.any(wishes)

            self._step = jax.jit(agree, donate_argnums=1, compiler_options=options)

    def __call__(self, stop: StopSignal, *arguments: Any) -> tuple[Any, Any]:
        """Take the step."""
        if not self._wishes:
            return self._step(*arguments)
        before = self._answer
        *results, self._answer = self._step(self._wishes[stop.number is not None], *arguments)
        self._stopping = before is not None and bool(before)
        return results[0], results[1]

    def stopping(self, stop: StopSignal) -> bool:
        """Return whether to stop after the last step; the same in all processes."""
        return self._stopping if self._wishes else stop.number is not None


def _per_device(mesh: Mesh, value: bool) -> Bool[Array, "devices"]:
    values = np.full(mesh.size, value)
    place = sharding.batch_sharded(mesh)
    return jax.make_array_from_callback(values.shape, place, lambda index: values[index])


# ---- A log of each ----


def keep_log(workdir: str) -> None:
    """Write what this process prints from now on to ``logs/process-N.log`` too, if it has others.

    Only the first process shows progress and results; any may print warnings and errors.
    """
    if jax.process_count() == 1 or "://" in workdir:
        return
    path = Path(workdir) / "logs" / f"process-{jax.process_index()}.log"
    path.parent.mkdir(exist_ok=True)
    log = open(path, "a", buffering=1)  # noqa: SIM115  until the end
    sys.stdout, sys.stderr = cast(Any, (_Both(sys.stdout, log), _Both(sys.stderr, log)))
    log.write(
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {jax.process_index()} of "
        f"{jax.process_count()}, {os.getpid()} on {platform.node()}, {jax.local_device_count()} x "
        f"{jax.local_devices()[0].device_kind}: {' '.join(sys.argv)}\n"
    )


class _Both:
    """A stream whose text also goes to a log, without what draws on a terminal."""

    def __init__(self, stream: Any, log: Any):
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        if "\x1b" not in text:
            self._log.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# ---- To end together ----


def if_all_come(finish: Callable[[], None]) -> Callable[..., None]:
    """Return a function for the end of a context; it calls ``finish``, which all processes reach.

    It does not call it if an error ended this process alone: the others, who do not know of the
    error, would not come.
    """

    def leave(kind: type | None, *error: object) -> None:
        agreed = kind is None or issubclass(kind, Interrupted | NonFiniteLossError)
        if agreed or jax.process_count() == 1:
            finish()

    return leave


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """End this process at once when an error ends it, if it is one of several.

    The usual end of Python would wait for processes that wait for this one. If another process was
    killed, one line says so. Enter this context once `jax.distributed` is initialised.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    _end_when_aborted()
    interruption = None
    try:
        try:
            yield
        except Interrupted as error:  # by agreement
            interruption = error
        jax.distributed.shutdown()
    except BaseException as error:
        if reason := _runtime_error(error):
            _end(_lost(reason), 1)
        if isinstance(error, UsageError):
            _end(f"error: {error}", 2)
        _end("".join(traceback.format_exception(error)).rstrip(), 1)
    if interruption:
        raise interruption


def _end_when_aborted() -> None:
    """Say in one line that another process is gone, where JAX's runtime aborts this one.

    The runtime aborts from its own thread when the coordinating process was killed or another one
    was silent for too long, and writes about twenty lines and a stack trace. So its standard error
    goes through a filter; what Python writes does not.
    """
    shown = os.dup(2)
    sys.stderr = open(shown, "w", buffering=1, closefd=False)  # noqa: SIM115  until the end
    filtered = _Filter(shown)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        os.dup2(shown, 2)  # and so the filter comes to its end
        filtered.thread.join(5.0)
        if filtered.lost_process:
            _end(_lost("another process has ended, or was not heard of for too long"), 1)

    # Python's own handlers run in the main thread, after the abort.
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))
    _kept.append(aborted)


class _Filter:
    """Passes on what is written to file descriptor 2, without the words of a lost process."""

    lost_process = False

    def __init__(self, shown: int):
        self._shown = shown
        self._source, written = os.pipe()
        os.dup2(written, 2)
        os.close(written)
        self.thread = threading.Thread(target=self._forward, daemon=True)
        self.thread.start()

    def _forward(self) -> None:
        hidden = False
        with open(self._source, "rb") as lines:
            for line in lines:
                if entry := re.match(rb"([IWEF])\d{4} \S+ +\d+ ([\w.]+):\d+\]", line):
                    severity, file = entry.groups()
                    hidden = file.startswith((b"coordination_service", b"client."))
                    self.lost_process |= hidden and severity == b"F"
                if not (hidden or self.lost_process):
                    os.write(self._shown, line)


_kept: list[Any] = []  # C code calls it
_ending = threading.Lock()


def _lost(reason: str) -> str:
    return (
        f"error: process {os.getpid()} on {platform.node()} cannot go on without the others "
        f"({reason}); when all are started again, they continue from the last checkpoint"
    )


def _runtime_error(error: BaseException | None) -> str | None:
    """Return the first line of the error of JAX's runtime that is behind an error, if one is."""
    while error is not None:
        if isinstance(error, JaxRuntimeError) or "Gloo" in str(error):  # a ValueError where fetched
            return str(error).partition("\n")[0][:300]
        error = error.__cause__ or error.__context__
    return None


def _end(text: str, status: int) -> NoReturn:
    if not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is doing it
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    os._exit(status)
