"""Twenty kills at random moments change nothing: `pytest -m soak` (half an hour on 2 CPU cores)."""

import random
import signal
import time

import pytest

from tests.jobs import end
from tests.parallel.test_processes import assert_same_up_to_rounding, command, steps
from tests.pipeline.test_run import files

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
KILLS = 20
__all__ = ["command"]  # a fixture


def killed(job, out, chance):
    """Kills one process of a started job: at any moment of its start, or some steps into training. All end."""
    at_step = None if chance.random() < 0.3 else len(steps(out)) + chance.randint(1, 12)
    deadline = time.monotonic() + (chance.uniform(0, 15) if at_step is None else 300)
    while time.monotonic() < deadline and all(process.poll() is None for process in job):
        if at_step is not None and len(steps(out)) >= at_step:
            time.sleep(chance.uniform(0, 0.3))  # so that saving is hit too
            break
        time.sleep(0.01)
    chance.choice(job).send_signal(signal.SIGKILL)
    codes, outputs = end(job)
    assert 0 not in codes, outputs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path, command, jobs, processes):
    command = [*command, "--gin.Training.epochs=60", "--gin.Training.checkpoint_every=3"]
    chance, whole, out = random.Random(processes), tmp_path / "whole", tmp_path / "killed"
    codes, outputs = end(jobs(command, whole, processes), timeout=1500)
    assert codes == [0] * processes, outputs
    for _ in range(KILLS):
        killed(jobs(command, out, processes), out, chance)
    print(f"{KILLS} kills of {processes} process(es), the last behind step {len(steps(out))} of {len(steps(whole))}")
    codes, outputs = end(jobs(command, out, processes), timeout=1500)
    assert codes == [0] * processes, outputs
    if processes == 1:
        assert files(whole) == files(out)
    else:
        assert_same_up_to_rounding(whole, out)
