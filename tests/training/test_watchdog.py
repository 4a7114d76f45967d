"""What stands still is ended, with the stack of every thread; what moves is not."""

import threading
import time

from deberta_jax.training import watchdog
from deberta_jax.training.watchdog import HUNG, Watchdog


def watched(tmp_path, seconds):
    ended = threading.Event(), []

    def end(status):
        ended[1].append(status)
        ended[0].set()

    return Watchdog(seconds, end, (tmp_path / "log").open("w")), ended


def hung_input(ended):
    return ended[0].wait(10)


def test_what_hangs_is_ended_with_the_stacks_of_all_threads(tmp_path):
    dog, ended = watched(tmp_path, 0.5)
    with dog:
        watchdog.moved("input", 7)
        begun = time.monotonic()
        assert hung_input(ended)
        assert time.monotonic() - begun < 3
    assert ended[1] == [HUNG]
    log = (tmp_path / "log").read_text()
    assert log.startswith("error: nothing has moved for") and "after step 7, in 'input'" in log
    assert "hung_input" in log and log.count("most recent call first") >= 2


def test_what_moves_is_not_and_compiling_may_take_longer(tmp_path):
    dog, ended = watched(tmp_path, 0.4)
    with dog:
        watchdog.moved("step", 1)
        for _ in range(8):
            time.sleep(0.1)
            watchdog.beat()
        watchdog.moved("compile")
        time.sleep(0.8)
    assert not ended[1]
    watchdog.beat()  # nobody watches: nothing happens
