"""What the commands share: flags, errors in one line, progress, the backend."""

from ancra_jax.cli.run import errors_in_one_line as errors_in_one_line
from ancra_jax.cli.run import fail as fail
from ancra_jax.cli.run import run as run
from ancra_jax.cli.run import start as start
from ancra_jax.cli.settings import changed as changed
from ancra_jax.cli.settings import read_settings as read_settings
from ancra_jax.cli.settings import settings_of as settings_of
