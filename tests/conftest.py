"""Puts this directory on the import path: tests in subdirectories share the loaders beside it."""
