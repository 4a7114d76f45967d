"""The one exception that a user's mistake raises: its text is the whole message."""


class UserError(Exception):
    """A mistake that the user can mend. The verbs print it as one line and exit with status 2.

    The message names the field, file or value at fault and what would be right.
    """
