"""TensorBoard's event files. Imported when training begins: tensorboardX imports PyTorch where it is installed."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_FLUSH_EVERY = 10  # seconds


class Board:
    """The events of one start.

    tensorboardX's own SummaryWriter writes in a thread, for which training would wait forever once a full disk has
    ended it.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens a new file; TensorBoard drops an earlier start's steps from `first_step` on."""
        self._events, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's values; the file is flushed every ten seconds."""
        for name, value in values.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        self._events.close()
