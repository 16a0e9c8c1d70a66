"""What an evaluation returns to Python code, and shows on a terminal and in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from ancra_jax.results.load import load_evaluation
from ancra_jax.results.rows import Row, row_of
from ancra_jax.results.tables import (
    Column,
    Table,
    all_attacks,
    build,
    escaped,
    not_run,
    reading_notes,
    row_notes,
)
from ancra_jax.results.tables.columns import (
    ADAPTIVE_ATTACK,
    CHECKS,
    NOT_ATTACKED,
    masks_table,
)
from ancra_jax.results.tables.features import NOTES as FEATURE_NOTES
from ancra_jax.results.tables.features import features_table
from ancra_jax.run.workdir import read_config


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """All that is known of a checkpoint: the worst case first, then every attack, then doubts.

    Attributes:
      row: the numbers, of this evaluation and of earlier ones: ``row.worst_case.accuracy``,
        ``row.accuracy['pgd40']``. Of a network with a defence ``row.worst_case`` is None until
        an attack made for it was run; ``row.upper_bound`` has what the others leave.
      results: of this evaluation, as their JSON files hold them.
    """

    row: Row
    results: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Names the checkpoint, and what it was evaluated on."""
        row = self.row
        step = row.diagnosis.step if row.diagnosis else row.step
        setting = ", ".join(filter(None, row.setting.values()))
        return f"{row.title}, step {step}: {setting} test examples"

    @property
    def claim(self) -> tuple[str, str]:
        """The robust accuracy, or that only an upper bound is known, and what it means.

        '' where no attack was run.
        """
        if self.row.upper_bound:
            return NOT_ATTACKED, "what the attacks below leave is an upper bound"
        worst = self.row.worst_case
        if not worst:
            return "", ""
        low, high = worst.interval
        meaning = "correct on the natural image and under every attack below"
        interval = f"[95 %: {low:.2%} to {high:.2%}]"
        return f"robust accuracy: {worst.accuracy:.2%}", f"{interval}\n{meaning}"

    @property
    def tables(self) -> list[Table]:
        """The attacks, what is known of adaptive ones and of masks, and the diagnosis."""
        row = self.row
        label = Column("", lambda row: row.label, "always")
        tables = [build("Accuracy in %", [label, *all_attacks([row])], [row]).transposed()]
        if row.adaptive:
            attacks = [(row, attack) for attack in row.adaptive]
            tables.append(build("Adaptive attacks, in their order", ADAPTIVE_ATTACK, attacks))
        if row.masks:
            tables.append(masks_table([row], [label]).transposed())
        if found := row.diagnosis:
            tables.append(build(f"Diagnosis: {escaped(found.verdict)}", CHECKS, found.checks))
        if features := row.evaluation.features:
            tables.append(features_table([(row.label, features)]))
        return tables

    @property
    def notes(self) -> list[str]:
        """What the numbers mean, and what should make a reader wary; Markdown."""
        more = FEATURE_NOTES if self.row.evaluation.features else ()
        rows = [self.row]
        return [*reading_notes(rows, []), *row_notes(self.row), *not_run(rows), *more]

    def print(self) -> None:
        """Print it on the terminal."""
        console = Console(highlight=False, force_jupyter=False)
        number, meaning = self.claim
        if number:
            console.print(Panel(f"[bold]{number}[/bold] {escape(meaning)}", expand=False))
        console.print(self.title, soft_wrap=True, markup=False)
        for table in self.tables:
            console.print(table.rich())
        for note in self.notes:
            console.print(f"- {note}", soft_wrap=True, markup=False)

    def __repr__(self) -> str:
        number, meaning = self.claim
        parts = [f"**{number}** {escaped(meaning)}"] if number else []
        parts.append(escaped(self.title))
        parts += [f"**{table.title}**\n\n{table.markdown()}" for table in self.tables]
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)])

    def _repr_markdown_(self) -> str:
        return repr(self)


def read_evaluation(
    workdir: str, checkpoint: str, results: Sequence[dict[str, Any]] = ()
) -> EvaluationResult:
    """Return all that is in the directory of a checkpoint, which an ``evaluation_name`` names."""
    config = read_config(workdir)
    row = row_of(workdir, config, config.name, load_evaluation(workdir, checkpoint))
    return EvaluationResult(row, list(results))
