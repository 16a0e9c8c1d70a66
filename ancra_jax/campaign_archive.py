"""Work directories without what can be done without: what a campaign carries between machines."""

import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Sequence

from ancra_jax import compact
from ancra_jax.checkpoint import Checkpoints
from ancra_jax.errors import UsageError
from ancra_jax.metrics import write_atomically
from ancra_jax.publish_record import NOTES

PIECE_BYTES = 31 * 2**19  # 15.5 MiB: the parameters of a ResNet-18 as bfloat16 are one piece
EVALUATED = ("params", "batch_stats")
_CHECKPOINTS = "checkpoints"
_FILES = ("config.json", "starts.jsonl", "metrics.jsonl", NOTES)

Files = dict[str, bytes]


def small_files(workdir: pathlib.Path, *, partial: bool = True) -> Files:
    """All but checkpoints and TensorBoard's files, by their path in the work directory.

    Args:
      workdir: of a run.
      partial: whether to take what unfinished attacks have found too, which can be computed again.
    """
    paths = [workdir / name for name in _FILES if (workdir / name).exists()]
    found = sorted(workdir.glob("evaluation/**/*"))
    paths += [path for path in found if path.is_file() and path.name[0] != "."]
    names = {path.relative_to(workdir).as_posix(): path for path in paths}
    return {
        name: path.read_bytes() for name, path in names.items() if partial or ".partial" not in name
    }


def checkpoint_files(
    workdir: pathlib.Path, step: int, parts: Sequence[str] = (), *, rounded: bool
) -> Files:
    """A checkpoint, packed.

    Args:
      workdir: of a run.
      step: of the checkpoint.
      parts: of the train state that are taken; () for all, with which training can go on.
      rounded: see ``compact.encode``.
    """
    checkpoints = Checkpoints(workdir / _CHECKPOINTS, read_only=True)
    tree, metrics, extra = checkpoints.read(step)
    tree = {name: part for name, part in tree.items() if not parts or name in parts}
    about = {"metrics": metrics, "extra": extra}
    return {
        f"{_CHECKPOINTS}/{step}.npz": compact.encode(tree, rounded=rounded),
        f"{_CHECKPOINTS}/{step}.json": json.dumps(about).encode(),
    }


def write_workdir(workdir: pathlib.Path, files: Files):
    """The inverse: a work directory that training and evaluation take for their own."""
    steps = {int(pathlib.PurePath(name).stem) for name in files if name.startswith(_CHECKPOINTS)}
    for name, content in files.items():
        if not name.startswith(_CHECKPOINTS):
            path = workdir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
    if not steps:
        return
    checkpoints = Checkpoints(workdir / _CHECKPOINTS)
    for step in sorted(steps):
        about = json.loads(files[f"{_CHECKPOINTS}/{step}.json"])
        tree = compact.decode(files[f"{_CHECKPOINTS}/{step}.npz"])
        checkpoints.save(step, tree, about["metrics"], about["extra"])
    checkpoints.close()


def to_pieces(files: Files) -> list[bytes]:
    """One zip archive of all files, cut."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            packed = name.endswith(".npz")  # which is deflated itself
            kind = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            archive.writestr(name, content, kind)
    data = buffer.getvalue()
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


def from_pieces(paths: Iterable[pathlib.Path]) -> Files:
    """The inverse.

    Raises:
      UsageError: a piece is missing or damaged.
    """
    paths = list(paths)
    try:
        with zipfile.ZipFile(io.BytesIO(b"".join(path.read_bytes() for path in paths))) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        where = paths[0].parent if paths else "the directory"
        raise UsageError(f"{where}: its pieces are incomplete or damaged: {error}") from error
