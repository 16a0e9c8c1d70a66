"""Run a command: flags, plug-ins, and one clear line for everything a user can get wrong."""

import contextlib
import csv
import importlib
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from logging import LogRecord
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from ancra_jax.cli.files import import_file
from ancra_jax.cli.settings import error_of, join_arguments
from ancra_jax.config import local_path
from ancra_jax.errors import UsageError
from ancra_jax.ops.extras import explained
from ancra_jax.registry import did_you_mean

_REPEAT = ";\n    repeat this option"  # what absl adds to the help of such a flag
HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")


def start(package: str) -> None:
    """Run the command of a package, ``main`` and ``define_flags`` in it, as `run` does.

    Where a module is missing that it needs, one line says which extra brings it.
    """
    with errors_in_one_line():
        command = importlib.import_module(package)
        main, define_flags = command.main, command.define_flags
    run(main, define_flags)


def run(main: Callable[[flags.FlagValues], int | None], define_flags: Callable[[], None]) -> None:
    """Parse the flags, call ``main`` and exit; a ``UsageError`` prints one line and exits 2."""
    others = set(flags.FLAGS)
    with errors_in_one_line():
        define_flags()
    flags.DEFINE_list(
        "plugin",
        [],
        "Files FILE.py or modules to import first, separated by commas: they register methods, "
        "networks, data sets and so on of one's own.",
    )
    names = set(flags.FLAGS) - others

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every setting is a flag, --name=value")
        from ancra_jax.cli import backend  # JAX takes a second to import

        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(_is_not_of_orbax)  # once, however many commands run
        backend.keep_compiled_programs()
        backend.give_memory_back()
        with errors_in_one_line(), backend.missing_device_named():
            for name in flags.FLAGS.plugin:
                import_plugin(name)
            return main(flags.FLAGS)

    try:
        if any(argument.split("=")[0] in HELP for argument in sys.argv[1:]):
            print(_help(main, names))
            raise SystemExit(0)
        app.run(guarded, flags_parser=partial(_parse_flags, sorted(names)))
    finally:
        flags.FLAGS.remove_flag_values(names)  # so that another command can define them


def _is_not_of_orbax(record: LogRecord) -> bool:
    """Leave out what reports every step, and errors twice."""
    return "orbax" not in record.pathname


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what a user can mend in one line and exit with status 2; let other errors pass."""
    try:
        with explained():
            yield
    except UsageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except OSError as error:  # a full disk, a file that may not be read, ...
        fail(f"{error.filename or type(error).__name__}: {error.strerror or error}")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in reason:
            raise
        fail(
            f"the memory does not suffice ({reason[:300]}); smaller batches need less: "
            "--batch_size of evaluate, --config.batch_size or "
            "--config.optimizer.accumulation_steps of train"
        )


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2, for wrong usage."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def import_plugin(name: str) -> None:
    """Import a file FILE.py, which may import its neighbours, or an installed module.

    Errors name it and, where its own code fails, the line.
    """
    if not name.endswith(".py"):
        path = Path(name)
    else:
        path = Path(local_path(name, "--plugin", directory=False)).resolve()
        if not path.is_file():
            raise UsageError(f"--plugin={name}: there is no file {path}")
    try:
        if name.endswith(".py"):
            _import_plugin_file(path)
        else:
            importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        raise error_of(f"--plugin={name}", path, error) from error


def _import_plugin_file(path: Path) -> None:
    known = sys.modules.get(path.stem)
    if getattr(known, "__file__", None) == str(path):
        return  # another plug-in has imported it
    sys.path.append(str(path.parent))
    # A plug-in that is called as another module, such as random.py, does not take its place.
    import_file(path, path.stem if known is None else str(path))


def _parse_flags(names: Sequence[str], argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(join_arguments(argv))
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, names)
        fail(f"there is no flag --{error.flagname}; {hint}allowed are --{', --'.join(names)}")
    except flags.Error as error:
        fail(str(error))
    except (OSError, ValueError, csv.Error) as error:  # such as a --flagfile that is no text
        fail(f"the flags cannot be read: {error}")


def _help(main: Callable[..., object], names: Collection[str]) -> str:
    """Return what a command does, and its flags."""
    # By ``ancra`` a command's module is run as __main__, which sys.modules has as another one.
    about: str = getattr(main, "__globals__", {}).get("__doc__") or ""
    parts = [about.strip(), "Flags:"]
    for name in sorted(names):
        flag = flags.FLAGS[name]
        default = "" if flag.default in (None, "", [], False, 0) else f" (default: {flag.default})"
        text = f"{flag.help.partition(_REPEAT)[0]}{default}"
        lines = [
            textwrap.fill(
                line, 96, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
            )
            for line in text.splitlines()
        ]
        parts.append("\n".join([f"  --{name}", *lines]))
    return "\n\n".join(parts)
