"""The paper's tables: their claims as data, and one command that computes their rows."""
