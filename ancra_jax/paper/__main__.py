"""``ancra paper``, or ``python -m ancra_jax.paper``."""

import sys

from ancra_jax import cli

if __name__ == "__main__":
    with cli.errors_in_one_line():
        from ancra_jax.paper.command import main

    raise SystemExit(main(sys.argv[1:]))
