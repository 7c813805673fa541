import json
import struct
from contextlib import closing

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from colm_jax.training.metrics import Log


def test_what_a_checkpoint_counts_on_is_in_a_closed_file(tmp_path):
    """A bucket that is mounted as a directory shows a file as it was when it was last closed."""
    log = Log(tmp_path, 0)
    log.write(1, {"loss": 1.0}, {})
    first = log._exact._file
    log.flush()
    assert first.closed
    log.write(2, {"loss": 0.5}, {})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def events(path):
    """The events of a TensorBoard file: length, its checksum, event, its checksum."""
    data, start = path.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        yield Event.FromString(data[start + 12 : start + 12 + length])
        start += length + 16


def test_tensorboard_gets_each_value_and_drops_the_steps_that_come_again(tmp_path):
    with closing(Log(tmp_path, 3)) as log:
        log.write(4, {"loss": 0.5}, {"seconds": 2.0})
    (file,) = (tmp_path / "logs").glob("events.out.tfevents.*")
    first, start, *values = events(file)
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, SessionLog.START)
    found = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in values]
    assert found == [(4, "loss", 0.5), (4, "seconds", 2.0)]


def test_a_full_disk_ends_training_and_does_not_hold_it(tmp_path, monkeypatch):
    log = Log(tmp_path, 0)

    def full(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._board._events._py_recordio_writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        log.write(1, {"loss": 0.5}, {})
    log.close()
