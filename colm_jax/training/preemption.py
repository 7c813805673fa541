"""Preemption: SIGTERM, which a scheduler sends before it removes the machine."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from colm_jax.parallel import asked_to_stop


@contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Catch SIGTERM in this context; yield a function that says after each step whether the signal has arrived.

    In a job of several processes all answer yes after the same step, some steps after the signal.
    """
    if jax.process_count() > 1:
        yield lambda step: asked_to_stop()
        return
    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
