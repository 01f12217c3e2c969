"""The one exception that a user's mistake becomes."""


class UserError(Exception):
    """Something the user can mend: one clear sentence that names the file, column or key and what was expected.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class PassingError(UserError):
    """Trouble of a store or network that is no mistake and may be gone the next time, so that it is worth trying again."""
