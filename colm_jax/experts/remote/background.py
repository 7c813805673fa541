"""Work beside the engine, in threads that never keep the process alive: one that hangs is left behind."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from colm_jax.experts.remote.client import Deadline, Lost

T = TypeVar("T")
R = TypeVar("R")
GRACE = 0.25  # seconds after a deadline, in which what has noticed it by itself may still report


def begin(work: Callable[[], None]) -> None:
    """Start work in a thread."""
    threading.Thread(target=work, daemon=True).start()


def concurrently(work: Callable[[T], R], items: Sequence[T], most: int, patience: float) -> Iterator[R]:
    """Yield the results of work on each item, in the order in which they are finished.

    Args:
      work: what is to be done, by a deadline of its own.
      items: what with.
      most: items at once.
      patience: seconds that one item may take.

    Raises:
      Lost: none was finished in that time.
      Exception: the first that the work raised; no further item is begun.
    """
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((True, work(item)))
            except Exception as error:  # raised where the results are read
                done.put((False, error))

    for _ in range(min(most, len(items))):
        begin(run)
    try:
        for _ in items:
            try:
                succeeded, found = done.get(timeout=patience + GRACE)
            except queue.Empty:
                raise Lost(f"no answer within {patience:g} s") from None
            if not succeeded:
                raise found
            yield found
    finally:
        stopped.set()


class Turns:
    """Lets so many requests be under way at once."""

    def __init__(self, most: int):
        self._free = threading.BoundedSemaphore(most)

    def take(self, deadline: Deadline) -> bool:
        """Wait for a turn; return whether there was one before the deadline."""
        return self._free.acquire(timeout=max(deadline.left, 0.0))

    def give(self) -> None:
        """End a turn."""
        self._free.release()
