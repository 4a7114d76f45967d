"""The exceptions whose text is the whole message: the verbs print it as one line."""

import errno
import os
import re
from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend. The verbs exit with status 2: no restart would mend it.

    The message names the field, file or value at fault and what would be right.
    """

    status = 2


class PassingError(UserError):
    """What may pass when the same command is run again. The verbs exit with status 1."""

    status = 1


# Errors of the system that another attempt may not meet again.
PASSING = (errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.EIO)
# Those that libraries in other languages wrap in exceptions of their own, by the text they keep.
_TEXTS = {
    os.strerror(number): number
    for number in (
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
        errno.EISDIR, errno.EFBIG, errno.ENAMETOOLONG, errno.ENXIO, errno.EMFILE,
    )
}  # fmt: skip
_TEXT = re.compile("|".join(map(re.escape, _TEXTS)), re.IGNORECASE)
_ADVICE = {
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "give yourself the permission, or name another place",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EFBIG: "the limit on the size of a file (ulimit -f, or the disk's) is reached",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENXIO: "it is a socket or a pipe, not a file",
}


def reason(error: BaseException, most: int | None = None) -> str:
    """The text of an exception as a part of a line, at most so long; without one, its kind."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def listed(names: Sequence[str], what: str = "", most: int = 3) -> str:
    """The first of some names, and how many more ("tensors") there are."""
    more = " ".join(filter(None, (f" and {len(names) - most} more", what)))
    return f"{', '.join(names[:most])}{more if len(names) > most else ''}"


def of_system(error: OSError, path: str = "") -> UserError:
    """An error of the system as one line: the path, what is wrong, and what would mend it.

    Args:
        error: with the path that it is about, if the system told it.
        path: what was being read or written, where `error` does not tell.
    """
    text = error.strerror or reason(error)
    where = error.filename if error.filename not in (None, "") else path
    where = os.fsdecode(where) if isinstance(where, (str, bytes)) else path
    parts = [f"{text[0].lower()}{text[1:]}", _ADVICE.get(error.errno or 0, "")]
    kind = PassingError if error.errno in PASSING or _of_network(error) else UserError
    return kind(": ".join(filter(None, (where, "; ".join(filter(None, parts))))))


def system_error_in(error: BaseException, path: str = "") -> UserError | None:
    """The error of the system that an exception is or was raised from, as one line; None without.

    Libraries in other languages raise exceptions of their own; their text tells.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return of_system(cause, path)
        cause = cause.__cause__
    if not (match := _TEXT.search(str(error))):
        return None
    text = next(text for text in _TEXTS if text.lower() == match[0].lower())
    told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return UserError(f"{of_system(OSError(_TEXTS[text], text), path)} ({told})")


def _of_network(error: OSError) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError))
