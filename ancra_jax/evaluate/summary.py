"""What the evaluation prints: all that is known of a checkpoint, by the columns of a report."""

from rich.console import Console
from rich.panel import Panel

from ancra_jax.results.load import load_evaluation
from ancra_jax.results.rows import row_of
from ancra_jax.results.tables import Column, all_attacks, build, reading_notes, row_notes
from ancra_jax.results.tables.columns import ADAPTIVE_ATTACK, CHECKS, masks_table
from ancra_jax.run.workdir import read_config


def print_summary(workdir: str, checkpoint: str) -> None:
    """Print the worst case first, then every attack, then what should make a reader wary.

    Shown is all that is in the directory of the checkpoint, which an ``evaluation_name`` names.
    """
    config = read_config(workdir)
    row = row_of(workdir, config, config.name, load_evaluation(workdir, checkpoint))
    console = Console(highlight=False)
    if row.worst_case:
        low, high = row.worst_case.interval
        text = (
            f"[bold]robust accuracy: {row.worst_case.accuracy:.2%}[/bold] [95 %: {low:.2%} to "
            f"{high:.2%}]\ncorrect on the natural image and under every attack below"
        )
        console.print(Panel(text, expand=False))
    step = row.diagnosis.step if row.diagnosis else row.step
    setting = ", ".join(filter(None, row.setting.values()))
    console.print(f"{row.title}, step {step}: {setting} test examples", soft_wrap=True)
    label = Column("", lambda row: row.label, "always")
    tables = [build("Accuracy in %", [label, *all_attacks([row])], [row]).transposed()]
    if row.adaptive:
        attacks = [(row, attack) for attack in row.adaptive]
        tables.append(build("Adaptive attacks, in their order", ADAPTIVE_ATTACK, attacks))
    if row.masks:
        tables.append(masks_table([row], [label]).transposed())
    if found := row.diagnosis:
        tables.append(build(f"Diagnosis: {found.verdict}", CHECKS, found.checks))
    for table in tables:
        console.print(table.rich())
    for note in (*reading_notes([row], []), *row_notes(row)):
        console.print(f"- {note}", soft_wrap=True, markup=False)
