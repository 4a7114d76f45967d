"""What the system refuses is one line with the path, in one place, for every verb."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deberta_jax import command
from deberta_jax.errors import PassingError, UserError, of_system, system_error_in


def failing(error):
    def verb():
        raise error

    return verb


def the_line(function, capsys):
    """(status, message) of a verb that fails."""
    with pytest.raises(SystemExit) as stop:
        command._one_line(function)
    (line,) = capsys.readouterr().err.splitlines()
    return stop.value.code, line.removeprefix("error: ")


NUMBERS = {
    errno.ENOSPC: (2, "no space left on device; make room"),
    errno.EDQUOT: (2, "make room"),
    errno.EROFS: (2, "read-only file system; name a place that can be written"),
    errno.EACCES: (2, "permission denied"),
    errno.ENOTDIR: (2, "a part of this path is a file"),
    errno.EISDIR: (2, "is a directory"),
    errno.ENAMETOOLONG: (2, "file name too long"),
    errno.ENXIO: (2, "it is a socket or a pipe"),
    errno.EIO: (1, "input/output error"),
    errno.ESTALE: (1, "stale"),
}


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_an_error_of_the_system_is_one_line_with_its_path(number, capsys):
    status, part = NUMBERS[number]
    error = OSError(number, os.strerror(number), "/runs/a b/file")
    got, line = the_line(failing(error), capsys)
    assert got == status and line.startswith("/runs/a b/file: ") and part in line.lower()
    # Raised from it, or told in another library's words alone.
    try:
        raise RuntimeError("the write failed") from error
    except RuntimeError as wrapped:
        assert the_line(failing(wrapped), capsys) == (got, line)
    if status == 2:
        told = ValueError(f"UNKNOWN: [OS error {number}: {os.strerror(number)}] x")
        found = system_error_in(told, "/runs/b")
        assert str(found).startswith("/runs/b: ") and "UNKNOWN" in str(found)


def test_real_errors_of_the_system(tmp_path):
    """Without a path told, the one that was being written is named."""
    (tmp_path / "file").write_text("")
    calls = [
        (lambda: tmp_path.read_text(), "is a directory"),
        (lambda: (tmp_path / "file" / "a").mkdir(), "not a directory"),
        (lambda: (tmp_path / ("a" * 300)).write_text(""), "file name too long"),
        (lambda: save_file({"a": np.zeros(9000)}, tmp_path / "a"), "file too large"),
    ]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for call, part in calls:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            call()
        except Exception as error:
            found = system_error_in(error, str(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(found).startswith(str(tmp_path)) and part in str(found).lower(), found
        assert "\n" not in str(found) and found.status == 2


def test_a_lost_connection_may_pass():
    assert isinstance(
        of_system(ConnectionResetError(104, "Connection reset by peer")), PassingError
    )
    assert not isinstance(of_system(OSError(errno.ENOSPC, "No space left")), PassingError)


def test_a_mistake_of_the_program_stays_a_traceback():
    for error in (KeyError("a"), ValueError("shapes differ"), AssertionError()):
        with pytest.raises(type(error)):
            command._one_line(failing(error))

    def handled_badly():
        try:
            Path("/no/such/file").read_text()
        except OSError:
            return {}["a"]

    with pytest.raises(KeyError):
        command._one_line(handled_badly)


def test_a_user_s_mistake_is_its_own_line(capsys):
    assert the_line(failing(UserError("a: b\n c")), capsys) == (2, "a: b c")
