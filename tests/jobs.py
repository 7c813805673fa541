"""Commands as processes of their own, one or several of one job, as users and schedulers start them."""

import os
import socket
import subprocess
import sys
import time


def start_job(command, out, count):
    """The job as `count` processes that share 8 devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // count}"  # the last one counts
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()}
    started = []
    for number in range(count):
        where = ["--distributed", f"localhost:{port},{count},{number}"]
        arguments = [*command, "--out", str(out), "--mesh", "1,4,2", *where]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(
            subprocess.Popen([sys.executable, "-m", "colm_jax.cli.main", *arguments], env=environment, **pipes)
        )
    return started


def end(processes, timeout=250):
    """Exit status and output of each, at most `timeout` seconds from now."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def until(condition, processes):
    """Waits for a condition, or for the end of a process."""
    while not condition() and all(process.poll() is None for process in processes):
        time.sleep(0.02)
