"""What the three commands share: flags, and one clear line for everything a user can get wrong."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from ancra_jax.errors import UsageError

EXIT_USAGE = 2


def run(main: Callable[[], int | None]):
    """Parses the flags, calls ``main`` and exits; a ``UsageError`` prints one line and exits 2."""

    def guarded(argv: Sequence[str]):
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: every setting is a flag, --name=value")
        logging.set_verbosity(logging.WARNING)
        try:
            return main()
        except UsageError as error:
            fail(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def fail(message: str):
    """Prints one line on standard error and exits with the status for wrong usage."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def _parse_flags(argv):
    _make_configs_importable(argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail(f"--config: there is no file {error.filename!r}" if error.filename else str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What a configuration file and its overrides raise: an unknown method, a misspelt field.
        fail(f"--config: {error.args[0] if error.args else error}")


def _make_configs_importable(argv):
    """Lets ``configs/cifar10.py`` import ``configs.common`` from any working directory."""
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config" and value:
            root = os.path.dirname(os.path.dirname(os.path.abspath(value.partition(":")[0])))
            if root not in sys.path:
                sys.path.append(root)
