"""The output folder of a campaign: what the next slice needs, and what was finished.

    campaign.json               how far it is
    state/TOKEN.NN              everything that goes on: pieces of one archive
    finished/SLICE.TOKEN.NN     what a slice finished: work directories with final checkpoints

Few files, none of them large, so that a machine with narrow limits gives them back. Nothing is
replaced before its successor is whole.
"""

import pathlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from ancra_jax.campaign_archive import (
    EVALUATED,
    PIECE_BYTES,
    Files,
    checkpoint_files,
    from_pieces,
    small_files,
    to_pieces,
    write_workdir,
)
from ancra_jax.campaign_progress import (
    EVALUATING,
    FINISHED,
    NEVER,
    TRAINING,
    Progress,
    from_json,
)
from ancra_jax.checkpoint import Checkpoints
from ancra_jax.errors import UsageError
from ancra_jax.metrics import write_atomically
from ancra_jax.publish_record import NOTES

MANIFEST = "campaign.json"
STATE, FINISHED_FOLDER = "state", "finished"
MAX_FILES = 8


@dataclass(frozen=True)
class Limits:
    """What may be carried, in bytes.

    Attributes:
      state: for the next slice, which carries code and data too.
      output: in all.
    """

    state: int
    output: int


def open_work(state: pathlib.Path, work: pathlib.Path) -> Progress:
    """Makes the work directories those that ``state`` belongs to.

    Where they are that already, as on a machine that is still warm, they are left alone, so that
    nothing is lost or rounded. Others are moved aside.

    Args:
      state: an output folder, or a place where there is none yet.
      work: directory of the work directories.

    Raises:
      UsageError: the state is damaged or cannot be written out.
    """
    mine, carried = read_progress(work), read_progress(state)
    if carried is None or (mine is not None and mine.token == carried.token):
        return mine or Progress()
    try:
        if work.exists() and any(work.iterdir()):
            number = 1
            while (aside := work.with_name(f"{work.name}-aside{number}")).exists():
                number += 1
            work.rename(aside)
            print(f"{work}: belongs to another state than {state}; moved to {aside}", flush=True)
        unpack([state], work)
        write_atomically(work / MANIFEST, carried.to_json())
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return carried


def unpack(outputs: Sequence[pathlib.Path], work: pathlib.Path):
    """Writes out the work directories of output folders, finished ones with their checkpoints.

    Args:
      outputs: of slices, in their order; what is under way is taken from the last.
      work: gets a work directory for each row.

    Raises:
      UsageError: one holds no output, or it is damaged.
    """
    progress = Progress()
    archives = []
    for output in outputs:
        found = read_progress(output)
        if found is None:
            raise UsageError(f"{output}: is no output of a campaign (there is no {MANIFEST})")
        progress = found
        finished = [output / FINISHED_FOLDER / f"{s}.{t}" for s, t in progress.finished.items()]
        archives += [archive for archive in finished if _pieces(archive)]
    archives.append(outputs[-1] / STATE / progress.token)
    rows: dict[str, Files] = {}
    for archive in archives:
        for name, content in from_pieces(_pieces(archive)).items():
            row, _, inner = name.partition("/")
            rows.setdefault(row, {})[inner] = content
    work.mkdir(parents=True, exist_ok=True)
    for row, files in rows.items():
        write_workdir(work / row, files)
        step = progress.of(row).rounded_at
        if step != NEVER and progress.of(row).status == TRAINING:
            note(
                work / row,
                f"Parameters were rounded to bfloat16 and momentum to float8 at step {step}, when "
                "the training moved to another machine.",
            )


def hand_on(state: pathlib.Path, output: pathlib.Path):
    """Copies the state to the output, so that a slice that is killed before it writes loses none.

    Raises:
      UsageError: the output cannot be written.
    """
    progress = read_progress(state)
    if progress is None or (output / MANIFEST).exists():
        return
    try:
        (output / STATE).mkdir(parents=True, exist_ok=True)
        for path in (*_pieces(state / STATE / progress.token), state / MANIFEST):
            shutil.copy(path, output / path.relative_to(state))
    except OSError as error:
        raise UsageError(f"--output: {output} cannot be written: {error.strerror}") from error


def write_output(
    output: pathlib.Path,
    work: pathlib.Path,
    rows: Sequence[str],
    progress: Progress,
    limits: Limits,
):
    """Writes all that another machine needs to go on.

    Args:
      output: the folder.
      work: directory of the work directories.
      rows: names of all rows.
      progress: is given a new token; written at last, when all else is there.
      limits: of the sizes; what exceeds them is said.

    Raises:
      UsageError: the folder cannot be written.
    """
    state = _state_pieces(work, rows, progress, limits.state)
    room = limits.output - sum(map(len, state))
    delivered, finished = _finished_pieces(work, rows, progress, room)
    token = progress.renew()
    slice_ = f"{progress.slices:03}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        _write_pieces(output / STATE / token, state)
        _write_pieces(output / FINISHED_FOLDER / f"{slice_}.{token}", finished)
        if finished:
            progress.finished[slice_] = token
        for row in delivered:
            progress.of(row).delivered = progress.slices
        write_atomically(output / MANIFEST, progress.to_json())
        write_atomically(work / MANIFEST, progress.to_json())
        for path in (*output.glob(f"{STATE}/*"), *output.glob(f"{FINISHED_FOLDER}/{slice_}.*")):
            if not path.stem.endswith(token):
                path.unlink()
    except OSError as error:
        raise UsageError(f"--output: {output} cannot be written: {error.strerror}") from error
    files = [path for path in output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{output}: {len(files)} files, {size / 2**20:.1f} MiB", flush=True)
    if len(files) > MAX_FILES or size > limits.output:
        print(
            f"warning: more than {MAX_FILES} files or {limits.output / 2**20:.0f} MiB: take "
            f"older archives in {output / FINISHED_FOLDER} away",
            flush=True,
        )


def read_progress(folder: pathlib.Path) -> Progress | None:
    """The progress that an output or a work folder holds, if any."""
    path = folder / MANIFEST
    return from_json(path.read_text(), str(path)) if path.exists() else None


def keep_final_checkpoint(workdir: pathlib.Path):
    """Leaves of a finished training what is evaluated and carried: its best checkpoint.

    Parameters that do not fit into one piece are rounded to bfloat16 before they are evaluated, so
    that the numbers are of the checkpoint that is kept. The full ones stay beside it.
    """
    checkpoints = workdir / "checkpoints"
    best = Checkpoints(checkpoints, read_only=True).best_step()
    if best is None or _size(checkpoints / str(best)) <= PIECE_BYTES:
        return
    files = checkpoint_files(workdir, best, EVALUATED, rounded=True)
    checkpoints.rename(workdir / "checkpoints_full")
    write_workdir(workdir, files)
    note(workdir, "The parameters were rounded to bfloat16 before the evaluation.")


def note(workdir: pathlib.Path, sentence: str):
    """Appends a sentence to what is published with the row."""
    path = workdir / NOTES
    lines = path.read_text().splitlines() if path.exists() else []
    write_atomically(path, "\n".join([*lines, sentence]) + "\n")


def _state_pieces(
    work: pathlib.Path, rows: Sequence[str], progress: Progress, limit: int
) -> list[bytes]:
    for partial in (True, False):
        files: Files = {}
        for row in rows:
            if (work / row).exists():
                packed = small_files(work / row, partial=partial)
                try:
                    packed |= _resumable(work / row, progress, limit)
                except UsageError as error:
                    print(f"warning: {row} is carried without checkpoints: {error}", flush=True)
                files |= {f"{row}/{name}": content for name, content in packed.items()}
        pieces = to_pieces(files)
        if (size := sum(map(len, pieces))) <= limit:
            return pieces
        if partial:
            print("the state is too large: unfinished attacks are left out of it", flush=True)
    print(
        f"warning: the state takes {size / 2**20:.1f} MiB, more than the {limit / 2**20:.0f} that "
        "are to be carried",
        flush=True,
    )
    return pieces


def _resumable(workdir: pathlib.Path, progress: Progress, limit: int) -> Files:
    """The checkpoints with which a row goes on."""
    row = progress.of(workdir.name)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    steps, best = checkpoints.steps(), checkpoints.best_step()
    files: Files = {}
    if row.status == TRAINING and steps:
        rounded = _size(workdir / "checkpoints" / str(steps[-1])) > limit
        row.rounded_at = steps[-1] if rounded else NEVER
        files |= checkpoint_files(workdir, steps[-1], rounded=rounded)
        if best not in (None, steps[-1]):
            files |= checkpoint_files(workdir, best, EVALUATED, rounded=rounded)
    if row.status == EVALUATING and best is not None:
        files |= _final(workdir, best)
    return files


def _final(workdir: pathlib.Path, step: int) -> Files:
    rounded = (workdir / "checkpoints_full").exists()  # then they are bfloat16's values already
    return checkpoint_files(workdir, step, EVALUATED, rounded=rounded)


def _finished_pieces(
    work: pathlib.Path, rows: Sequence[str], progress: Progress, room: int
) -> tuple[list[str], list[bytes]]:
    """As many finished rows as there is room for, and their archive."""
    files: Files = {}
    delivered = []
    for row in rows:
        if progress.of(row).status != FINISHED:
            continue
        if progress.of(row).delivered not in (NEVER, progress.slices):
            continue
        best = Checkpoints(work / row / "checkpoints", read_only=True).best_step()
        if best is None:
            continue  # it was finished on another machine
        packed = small_files(work / row, partial=False) | _final(work / row, best)
        packed = {f"{row}/{name}": content for name, content in packed.items()}
        if sum(map(len, [*files.values(), *packed.values()])) > room:
            print(f"{row}: no room for its checkpoint in this output", flush=True)
            continue
        files |= packed
        delivered.append(row)
    return delivered, to_pieces(files) if files else []


def _write_pieces(archive: pathlib.Path, pieces: Sequence[bytes]):
    archive.parent.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(pieces):
        write_atomically(f"{archive}.{number:02}", piece)


def _pieces(archive: pathlib.Path) -> list[pathlib.Path]:
    return sorted(archive.parent.glob(f"{archive.name}.[0-9][0-9]"))


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
