"""Publishes rows in ``results/``: ``python -m tools.publish --workdirs=DIR[,DIR...]``.

Every evaluated checkpoint becomes a file in ``results/rows/``; one that is there with other
contents is kept unless ``--replace`` is given. Then results/README.md and the table in
README.md are written anew from all files; without ``--workdirs`` that alone. Run it in the root of
the repository. With ``--quickstart=runs/quickstart`` the README's block on the quickstart and its
picture are written too, from the runs that ``launch/quickstart.sh`` left there.
"""

import json
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from ancra_jax import cli
from ancra_jax.cli import options
from ancra_jax.config import local_path
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import write_atomically
from ancra_jax.results.load import load_runs
from ancra_jax.results.rows import rows_of
from ancra_jax.results.store import CHECKPOINTS
from tools.publish.pages import groups_of, readme_section, results_page
from tools.publish.quickstart import PICTURE
from tools.publish.quickstart import section as quickstart_section
from tools.publish.record import check_together, file_name, read_all, record_of, validate


def publish(
    workdirs: Sequence[str] = (),
    results: str = "results",
    readme: str = "README.md",
    *,
    replace: bool = False,
    quickstart: str = "",
) -> None:
    """Add the rows of work directories and write the pages.

    Args:
      workdirs: directories of evaluated runs, DIR[,DIR...]; may be empty.
      results: directory that gets ``rows/*.json`` and ``README.md``; created if need be.
      readme: file with a section between ``<!-- results -->`` and ``<!-- /results -->``.
      replace: replace rows whose contents differ.
      quickstart: directory of the quickstart's runs; then the readme's section between
        ``<!-- quickstart -->`` and ``<!-- /quickstart -->``, and its picture, are written too.

    Raises:
      UsageError: a run cannot be read, was not evaluated or is of no recipe in ``configs/``, a
        file is no valid row or would be overwritten, or the README lacks the section. Nothing is
        written then.
      OSError: a file cannot be read or written.
    """
    results = local_path(results, "--results")
    readme = local_path(readme, "--readme", directory=False)
    workdirs = [local_path(workdir, "--workdirs") for workdir in workdirs]
    directory = pathlib.Path(results) / "rows"
    rows = read_all(directory)
    changed = []
    found = rows_of(load_runs(workdirs)) if workdirs else []
    own = [row for row in found if row.checkpoint in CHECKPOINTS]  # under the run's threat model
    for record in map(record_of, own):
        name = file_name(record)
        old = rows[name].record if name in rows else {}
        # The worst case follows from the rest.
        differing = [key for key in record if key != "worst_case" and record[key] != old.get(key)]
        if old and differing and not replace:
            raise UsageError(
                f"{directory / name}: holds a row with other {', '.join(differing)}: --replace "
                "overwrites it"
            )
        if differing:
            rows[name] = validate(record, name)
            changed.append(name)
    check_together(rows)
    groups = groups_of(list(rows.values()))
    page = results_page(groups)
    sections = {"results": readme_section(groups)}
    pictures: dict[pathlib.Path, bytes] = {}
    if quickstart:
        quickstart = local_path(quickstart, "--quickstart")
        sections["quickstart"], picture = quickstart_section(quickstart)
        pictures[pathlib.Path(readme).parent / PICTURE] = picture
    text = pathlib.Path(readme).read_text()
    for name, section in sections.items():
        text = _with_section(text, name, section, readme)
    directory.mkdir(parents=True, exist_ok=True)
    for name in changed:
        write_atomically(directory / name, json.dumps(rows[name].record, indent=1) + "\n")
    write_atomically(pathlib.Path(results) / "README.md", page)
    for path, picture in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, picture)
    write_atomically(readme, text)


def _with_section(text: str, name: str, section: str, readme: str) -> str:
    """Return the text with another section of a name."""
    pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UsageError(f"--readme={readme}: has no lines <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda _: section, text)


def define_flags() -> None:
    """Define a flag for each parameter of `publish`."""
    options.define(publish)


def main(arguments: flags.FlagValues) -> None:
    """Run the command."""
    publish(**options.read(publish, arguments))
    number = len(list(pathlib.Path(arguments.results).expanduser().glob("rows/*.json")))
    print(f"{arguments.results}: {number} rows; its README.md and {arguments.readme} are written")


if __name__ == "__main__":
    cli.run(main, define_flags)
