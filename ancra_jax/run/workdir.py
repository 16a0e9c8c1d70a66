"""The directory of a run: its configuration, and with which code it was started and continued."""

import contextlib
import datetime
import fcntl
import functools
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from ancra_jax import config as config_lib
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.ops import files
from ancra_jax.urls import is_url

STARTS, METRICS = "starts.jsonl", "metrics.jsonl"
# Settings that do not change what a run computes, only where it finds its data, how often it
# writes, and how far it goes.
FREE_SETTINGS = {"data.data_dir", "log_every_steps", "checkpoint_every_steps", "max_steps"}


def check_for_training(workdir: str, config: Config) -> None:
    """Check that a directory is new, or holds a run of the same configuration that nobody uses."""
    path = files.as_path(workdir)
    file = path / "config.json"
    if file.exists():
        differences = _differences(config_lib.to_mapping(read_config(workdir)), config)
        if differences:
            nothing = not any(path.glob("checkpoints*/*"))  # damaged ones were something, too
            raise UsageError(
                f"--workdir={workdir}: holds a run of another configuration "
                f"({'; '.join(differences[:4])}{'; ...' if len(differences) > 4 else ''}); "
                "give this run another --workdir"
                f"{', or delete that one, of which no checkpoint was saved' * nothing}"
            )
        with one_writer(workdir):
            pass
    elif path.is_dir() and not all(map(files.is_temporary, path.iterdir())):
        raise UsageError(
            f"--workdir={workdir}: is not empty and holds no run (there is no config.json)"
        )
    elif config.data.name == "folder" and config.data.data_dir:
        classes = pathlib.Path(config.data.data_dir).resolve()
        inside = not is_url(workdir) and classes in pathlib.Path(workdir).resolve().parents
        if inside and not (classes / "train").is_dir():
            raise UsageError(
                f"--workdir={workdir}: lies in --config.data.data_dir={config.data.data_dir}, "
                "where every folder is a class of images"
            )


def holds_run(workdir: str) -> bool:
    """Return whether a directory has the configuration of a run."""
    return (files.as_path(workdir) / "config.json").exists()


def open_for_training(workdir: str, config: Config) -> None:
    """Create the directory, or check that it has the same configuration, and write config.json."""
    check_for_training(workdir, config)
    path = files.as_path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config_lib.to_mapping(config), indent=2) + "\n"
        files.write_atomically(path / "config.json", text)
    except OSError as error:
        raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def one_writer(workdir: str) -> Iterator[None]:
    """Keep all other processes from writing to a run's directory, and tidy it up.

    The lock ends with the process, whatever ends that. Damaged lines of the JSON-lines files are
    set aside, and unfinished files of killed processes removed. In a bucket there is no lock, and
    a line says so.

    Raises:
      UsageError: another process writes to it, or it cannot be written to.
    """
    path = files.as_path(workdir)
    if is_url(workdir):
        _tell_of_no_lock(workdir)
    with contextlib.nullcontext() if is_url(workdir) else _locked(workdir):
        files.remove_temporaries(path)
        files.set_lines_aside(path / METRICS, is_metric, "damaged")
        files.set_lines_aside(path / STARTS, lambda record: "step" in record, "damaged")
        yield


@functools.cache  # once
def _tell_of_no_lock(workdir: str) -> None:
    print(f"warning: {workdir}: cannot be locked; start no other process on it", flush=True)


@contextlib.contextmanager
def _locked(workdir: str) -> Iterator[None]:
    """Hold the lock of a directory of this machine."""
    try:
        file = open(f"{workdir}/.lock", "a+")  # noqa: SIM115  closed below
    except OSError as error:
        raise UsageError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            raise UsageError(f"--workdir={workdir}: in use by {owner}") from None
        except OSError as error:
            print(f"warning: {workdir}: cannot be locked ({error.strerror}); start no other "
                  "process on it", flush=True)  # fmt: skip
        file.truncate(0)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {platform.node()} since {now}")
        file.flush()
        yield


def is_metric(record: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics.jsonl is a record of training or selection."""
    known = {"kind", "epoch"} <= record.keys() and type(record.get("step")) is int
    return known and all(type(record[name]) in (int, float) for name in {*record} - {"kind"})


def read_config(workdir: str, field: str = "--workdir") -> Config:
    """Return the configuration of the run in a directory, which errors call ``field``."""
    file = files.as_path(config_lib.directory_path(workdir, field)) / "config.json"
    try:
        return config_lib.from_mapping(files.read_json(file), "config")
    except (FileNotFoundError, NotADirectoryError):
        files_too = "; files must be on this machine" if is_url(workdir) else ""
        raise UsageError(
            f"{field}={workdir}: holds no run (there is no config.json){files_too}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{field}={workdir}: config.json cannot be read: {error}") from error


def record_start(workdir: str, step: int, **more: Any) -> None:
    """Append to starts.jsonl at which step, and with which code, the training starts or goes on.

    ``more`` says where the first weights came from, if they were given.
    """
    files.append_json_line(files.as_path(workdir) / STARTS, {"step": step, **provenance(), **more})


def read_starts(workdir: str) -> list[dict[str, Any]]:
    """Return what `record_start` wrote; empty for runs from before it existed."""
    return files.read_json_lines(files.as_path(workdir) / STARTS)


def provenance() -> dict[str, Any]:
    """Return what made a number: versions, device, commit, time."""
    packages = ("ancra-jax", "jax", "jaxlib", "flax", "numpy")
    return {
        "versions": {name: _version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a source tree that was copied here, not installed
        return "not installed"


def _commit() -> str | None:
    """Return the commit of the source tree that is running; None for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    directory = pathlib.Path(__file__).parent
    try:
        completed = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None


def _differences(saved: dict[str, Any], config: Config) -> list[str]:
    old = flatten_dict(saved, sep=".")
    new = flatten_dict(config_lib.to_mapping(config), sep=".")
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in old | new
        if old.get(name) != new.get(name) and name not in FREE_SETTINGS
    ]
