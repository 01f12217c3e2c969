"""The one exception that a user's mistake becomes."""


class UserError(Exception):
    """Something the user can mend: one clear sentence that names the file, column or key and what was expected.

    The command line prints the sentence without a traceback and exits with status 2.
    """
