"""The recipes of ``configs/``, for the commands that belong to the repository."""

import importlib

from ml_collections import ConfigDict

from ancra_jax.errors import UsageError


def recipe(data: str, argument: str) -> ConfigDict:
    """What ``--config=configs/DATA.py:ARGUMENT`` gives.

    Raises:
      UsageError: there is no such file, or it has no such method.
    """
    try:
        return importlib.import_module(f"configs.{data}").get_config(argument)
    except ImportError:
        raise UsageError(
            f"there is no configs/{data}.py here: run this in the root of the repository"
        ) from None
    except LookupError as error:
        raise UsageError(f"configs/{data}.py:{argument}: {error.args[0]}") from error
