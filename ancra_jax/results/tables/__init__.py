"""Tables of results: lists of columns over rows, as Markdown and on a terminal."""

from ancra_jax.results.tables.columns import all_attacks, caption, tables_of
from ancra_jax.results.tables.notes import not_run, reading_notes, row_notes
from ancra_jax.results.tables.table import (
    Column,
    Markup,
    Table,
    TextColumn,
    build,
    compared,
    escaped,
    points,
)

__all__ = ["Column", "Table", "TextColumn", "all_attacks", "build", "caption", "escaped"]
__all__ += ["Markup", "compared", "not_run", "points", "reading_notes", "row_notes", "tables_of"]
