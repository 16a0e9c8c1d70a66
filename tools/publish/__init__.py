"""Publishes rows in ``results/``."""
