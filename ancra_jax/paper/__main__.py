"""``python -m ancra_jax.paper``."""

import sys

from ancra_jax.paper.command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
