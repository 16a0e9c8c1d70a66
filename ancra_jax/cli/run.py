"""What the three commands share: flags, and one clear line for everything a user can get wrong."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from ancra_jax.cli.backend import keep_compiled_programs
from ancra_jax.errors import UsageError

EXIT_USAGE = 2


def run(main: Callable[[flags.FlagValues], int | None], define_flags: Callable[[], None]):
    """Parses the flags, calls ``main`` and exits; a ``UsageError`` prints one line and exits 2."""
    define_flags()

    def guarded(argv: Sequence[str]):
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every setting is a flag, --name=value")
        logging.set_verbosity(logging.ERROR)  # Orbax reports its every step as a warning
        keep_compiled_programs()
        try:
            return main(flags.FLAGS)
        except UsageError as error:
            fail(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def fail(message: str) -> NoReturn:
    """Prints one line on standard error and exits with the status for wrong usage."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def _parse_flags(argv):
    _find_config(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # What a configuration file and its overrides raise: an unknown method, a misspelt field.
        fail(f"--config: {error.args[0] if error.args else error}")


def _find_config(argv):
    """Checks that the configuration file is there, and lets it import its neighbours.

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
