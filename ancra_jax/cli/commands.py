"""The command ``ancra``, whose first argument names what is run."""

import runpy
import sys

import ancra_jax
from ancra_jax.cli.run import HELP, errors_in_one_line, fail
from ancra_jax.registry import did_you_mean

COMMANDS = {
    "train": ("ancra_jax.train", "train a network, or go on where a run stopped"),
    "evaluate": ("ancra_jax.evaluate", "attack a trained network"),
    "report": ("ancra_jax.report", "write tables, figures and a page on runs"),
    "paper": ("ancra_jax.paper", "compute one of the paper's tables"),
    "predict": ("ancra_jax.predict", "say what images show"),
    "import": ("ancra_jax.convert.from_torch", "make a work directory of PyTorch's weights"),
    "export": ("ancra_jax.convert.to_torch", "write a trained network for PyTorch"),
}
"""What runs each command, a module or the ``__main__`` of a package, and what it does."""

_HELP = """Train robust image classifiers in JAX, and find out how robust they really are.

usage: ancra COMMAND [--name=value ...]

{commands}

ancra COMMAND --help lists the command's flags; ancra --version prints the version.

    ancra train    --config=digits.py:trades_ancra --workdir=runs/ancra
    ancra evaluate --workdir=runs/ancra
    ancra report   --workdirs=runs/ancra --output=runs/report"""


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or HELP
    if name in (*HELP, "help"):
        lines = (f"  {name:9} {text}" for name, (_, text) in COMMANDS.items())
        print(_HELP.format(commands="\n".join(lines)))
    elif name == "--version":
        print(f"ancra-jax {ancra_jax.__version__}")
    elif name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        fail(f"there is no command {name!r}: {hint}commands are {', '.join(COMMANDS)}")
    else:
        sys.argv = [f"ancra {name}", *arguments]
        with errors_in_one_line():
            runpy.run_module(COMMANDS[name][0], run_name="__main__")


if __name__ == "__main__":
    main()
