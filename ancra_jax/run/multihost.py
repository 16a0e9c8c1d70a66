"""Several processes that train together: a pod of TPU hosts, or the nodes of a cluster."""

import jax
from absl import flags
from jax.experimental import multihost_utils

from ancra_jax.errors import UsageError


def define_flags() -> None:
    """Define the flags of a command that may run as several processes."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "This process is one of several. TPU pods and SLURM say which; elsewhere the three flags "
        "below do.",
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


def initialize(arguments: flags.FlagValues) -> None:
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
    try:
        jax.distributed.initialize(*named)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--distributed: cannot join the other processes: {error}") from error


def is_main() -> bool:
    """Return whether this process writes the files that one process writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here; return at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
