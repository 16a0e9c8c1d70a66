"""Run a command: flags, plug-ins, and one clear line for everything a user can get wrong."""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from ancra_jax.cli.backend import keep_compiled_programs
from ancra_jax.errors import UsageError


def run(main: Callable[[flags.FlagValues], int | None], define_flags: Callable[[], None]) -> None:
    """Parse the flags, call ``main`` and exit; a ``UsageError`` prints one line and exits 2."""
    define_flags()
    flags.DEFINE_list(
        "plugin",
        [],
        "Files FILE.py or modules to import first, separated by commas: they register methods, "
        "networks, data sets and so on of one's own.",
    )

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every setting is a flag, --name=value")
        logging.set_verbosity(logging.FATAL)  # Orbax reports every step, and errors twice
        keep_compiled_programs()
        try:
            for name in flags.FLAGS.plugin:
                import_plugin(name)
            return main(flags.FLAGS)
        except UsageError as error:
            fail(str(error))
        except OSError as error:  # a full disk, a file that may not be read, ...
            fail(f"{error.filename or type(error).__name__}: {error.strerror or error}")

    app.run(guarded, flags_parser=_parse_flags)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2, for wrong usage."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def import_plugin(name: str) -> None:
    """Import a file FILE.py, which may import its neighbours, or an installed module.

    Errors name it and, where its own code fails, the line.
    """
    path = Path(name).expanduser().resolve()
    if path.suffix == ".py" and not path.is_file():
        raise UsageError(f"--plugin={name}: there is no file {path}")
    try:
        if path.suffix == ".py":
            _import_file(path)
        else:
            importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"--plugin={name}{line}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    known = sys.modules.get(path.stem)
    if getattr(known, "__file__", None) == str(path):
        return  # another plug-in has imported it
    sys.path.append(str(path.parent))
    # A plug-in that is called as another module, such as random.py, does not take its place.
    module_name = path.stem if known is None else str(path)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)


def _parse_flags(argv: list[str]) -> list[str]:
    _find_config(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # What a configuration file and its overrides raise: an unknown method, a misspelt field.
        fail(f"--config: {error.args[0] if error.args else error}")


def _find_config(argv: list[str]) -> None:
    """Check that the configuration file is there, and let it import its neighbours.

    ``configs/cifar10.py`` imports ``configs.common``, which has to work from any directory.
    """
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            continue
        if not equals:
            value = argv[position + 1] if position + 1 < len(argv) else ""
        path = os.path.abspath(value.partition(":")[0])
        if not os.path.isfile(path):
            fail(f"--config={value}: there is no file {path}")
        sys.path.append(os.path.dirname(os.path.dirname(path)))
