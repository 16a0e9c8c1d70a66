"""The one model of results: kept, loaded, and computed with; no formatting."""
