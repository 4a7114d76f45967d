"""SIGTERM and SIGINT: at once, between two steps, or by a thread while the main one compiles."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta_jax.training import signals

ROOT = Path(__file__).parents[2]
# The main thread is in a call that no handler interrupts, as the compiler is.
SCRIPT = """
import ctypes, sys
from deberta_jax.training import signals
signals.end_when_told()
def compile():
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(60)
    ctypes.CDLL(None).sleep(60)
what = sys.argv[1]
if what == "nothing done":
    try:
        import time
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
elif what == "compiling":
    compile()
else:
    with signals.between_steps() as stop:
        with signals.evaluating(lambda: print("saved", flush=True)):
            compile()
"""


def test_between_steps_the_loop_is_told():
    before = signal.getsignal(signal.SIGTERM)
    with signals.between_steps() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested() and stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_evaluation_is_given_up():
    with signals.between_steps():
        signals.check()  # nothing is measured
        with pytest.raises(signals.Interrupted), signals.evaluating(lambda: None):
            signals.check()
            os.kill(os.getpid(), signal.SIGINT)
            signals.check()


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(SystemExit), signals.between_steps() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        os.kill(os.getpid(), signal.SIGINT)


def test_whatever_the_main_thread_does_the_process_ends_with_143_in_ten_seconds():
    phases = {"nothing done": "cleaned up", "compiling": "", "evaluating": "saved"}
    started = {
        phase: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, phase], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for phase in phases
    }
    for process in started.values():
        assert process.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for process in started.values():
        process.send_signal(signal.SIGTERM)
    for phase, process in started.items():
        output, _ = process.communicate(timeout=60)
        assert process.returncode == signals.STOPPED, phase
        assert phases[phase] in output
    assert time.monotonic() - begun < 10
