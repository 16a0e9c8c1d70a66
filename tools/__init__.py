"""Maintainers' commands; not in the wheel."""
