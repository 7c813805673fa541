"""The one exception for what the user got wrong; the command line prints it as one line and exits with status 2."""


class UserError(ValueError):
    """Wrong input. The message names the file, line or key, the value received, and the remedy."""
