"""`launch/test.sh fast` runs the tests that fast.txt names: some of every room."""

from pathlib import Path

TESTS = Path(__file__).parent
# Each of its tests builds and installs a wheel.
NEVER_FAST = {TESTS / "packaging"}


def test_every_room_has_fast_tests():
    named = {
        TESTS.parent / line.split("::")[0] for line in (TESTS / "fast.txt").read_text().split()
    }
    assert not [str(path) for path in named if not path.exists()]
    rooms = {path.parent for path in TESTS.rglob("test_*.py")} - NEVER_FAST
    assert rooms == {path.parent for path in named}
