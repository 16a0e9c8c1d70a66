"""The one exception that a mistake of the user's ends in."""


class UsageError(ValueError):
    """Something that the user typed, or a file they pointed to, cannot be used.

    The message is one line that names the field, its value and what is allowed. The command-line
    programs print it without a traceback and exit with a status other than 0.
    """


class NonFiniteLossError(UsageError):
    """The loss or a gradient of the training became infinite or NaN."""
