"""Commands between work directories and other libraries' files of weights."""
