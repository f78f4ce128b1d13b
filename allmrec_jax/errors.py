"""The one error that is the user's to mend."""


class UserError(Exception):
    """Bad input, settings or files. The message is one line that says what, where and what to do.

    The command line prints it as ``error: …`` and exits with 2; anything else that is raised is a bug of ours.
    """
