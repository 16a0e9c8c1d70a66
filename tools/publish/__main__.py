"""``python -m tools.publish``, in the root of the repository."""

from ancra_jax import cli
from tools.publish.command import define_flags, main

if __name__ == "__main__":
    cli.run(main, define_flags)
