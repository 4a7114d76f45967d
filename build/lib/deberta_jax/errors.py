"""The exceptions whose text is the whole message: the verbs print it as one line."""


class UserError(Exception):
    """A mistake that the user can mend. The verbs exit with status 2: no restart would mend it.

    The message names the field, file or value at fault and what would be right.
    """

    status = 2


class PassingError(UserError):
    """What may pass when the same command is run again. The verbs exit with status 1."""

    status = 1
