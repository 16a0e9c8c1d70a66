"""A run: its objects, and what it leaves on disk."""
