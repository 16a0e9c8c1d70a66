"""Where the numbers of a run go: a JSON-lines file and TensorBoard."""

import json
import os
import pathlib

from tensorboardX import SummaryWriter

from ancra_jax.run.files import read_json_lines, write_atomically


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and their numbers to TensorBoard.

    A resumed run drops what an earlier attempt wrote after the checkpoint that it continues from,
    so that every step is there once.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int):
        """Opens the files of a work directory, which exists."""
        workdir = pathlib.Path(workdir)
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_json_lines(path) if record["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  closed by close()
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
        )

    def write(self, kind: str, step: int, values: dict[str, float | int]):
        """Records numbers of one kind (``'train'``, ``'selection'``) at a step."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self):
        """Closes the files."""
        self._file.close()
        self._tensorboard.close()
