"""The one model of results: kept, loaded, and computed with; no formatting."""

from ancra_jax.results.load import load_evaluation, load_runs
from ancra_jax.results.rows import row_of, rows_of, seeds_rows
from ancra_jax.results.store import ResultStore, evaluation_name, read_result

__all__ = ["ResultStore", "evaluation_name", "load_evaluation", "load_runs", "read_result"]
__all__ += ["row_of", "rows_of", "seeds_rows"]
