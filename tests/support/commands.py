"""Commands in processes that are forked off one which has imported all that they need."""

import os
import sys
import tempfile

import jax

import ancra_jax.evaluate.suites
import ancra_jax.train.loop
from ancra_jax import cli, evaluate, train
from tests.support import small_runs
from tests.support.buckets import Folder
from tests.support.short_attacks import short_attacks

assert ancra_jax.train.loop and small_runs  # which registers the network
ONE_OF_EACH = ("natural", "released", "autoattack", "adaptive", "diagnostics", "features")
"""Of the kinds of attacks: those of the paper are carried out as the released ones."""
PACKAGES = {"train": train, "evaluate": evaluate}


def run(command, arguments, devices, directory, output, files):
    """Runs a command on CPU devices in a directory, where its temporary files are too.

    What it prints goes to a file; ``files``, if any, are those of addresses ``folder://``.
    """
    os.chdir(directory)
    tempfile.tempdir = str(directory)
    Folder.files = files
    ancra_jax.evaluate.suites.SUITES["all"] = ONE_OF_EACH
    _set_up([command, *arguments], devices, output)
    with short_attacks():
        cli.run(PACKAGES[command].main, PACKAGES[command].define_flags)


def execute(code, arguments, devices, output):
    """Runs Python code on CPU devices; what it prints goes to a file."""
    _set_up(["-c", *arguments], devices, output)
    exec(code, {"__name__": "__main__"})


def _set_up(argv, devices, output):
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = argv
