"""What each start of the gate costs and gives, and where `--trainable gate` gets from it: the table of docs/method.md.

    python -m docs.tables.gate_init --base babyllama-105 --expert babyllama-361 \
        --data train.jsonl --test tinystories_sample.txt
"""

import argparse
import tempfile
import time
from functools import partial

import numpy as np

from colm_jax.pipeline.executor import StageContext
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.run import run_pipeline
from colm_jax.pipeline.stages.opened import open_positions
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import SOLVERS, GateInit
from colm_jax.training.gate_fit import Fit, MeanLoss, _label_loss, _latent_loss, initial_gate, train_gate
from colm_jax.training.positions import Positions


def prepared(arguments: argparse.Namespace, data: str, out: str) -> tuple[RunInputs, Positions]:
    """A data file's positions under the pair."""
    run = run_pipeline(RunConfig(arguments.base, (arguments.expert,), data), out, until="gate")
    return run.inputs, open_positions(StageContext(run.inputs, run.stages))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "expert", "data", "test"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs, data = prepared(arguments, arguments.data, f"{folder}/data")
        _, test = prepared(arguments, arguments.test, f"{folder}/test")

        def mean(positions: Positions, loss, kernel: np.ndarray) -> float:
            return MeanLoss(positions, loss, 0.0, False).value(kernel.reshape(-1).astype(np.float64))

        labelled = partial(_label_loss, positive_weight=GateInit().positive_weight)
        width, positions = data.shape[0], f"{data.count:,} training and {test.count:,} held-out positions"
        print(f"{positions}, D = {width}; nats per token\n")
        print("| solver | labels' BCE | steps | passes | seconds | team | steps | passes | seconds | team, trained |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")

        def cost(fit: Fit, seconds: float) -> list[str]:
            return [f"{max(len(fit.losses) - (fit.passes > 1), 0)}", f"{fit.passes}", f"{seconds:.1f}"]

        for solver in SOLVERS:
            initial_gate(data, GateInit(solver), inputs.head_mean)  # compiles
            began = time.perf_counter()
            fit = initial_gate(data, GateInit(solver), inputs.head_mean)
            seconds = time.perf_counter() - began
            row = [solver, f"{mean(data, labelled, fit.kernel):.4f}", *cost(fit, seconds)]
            row += [f"{mean(test, _latent_loss, fit.kernel):.4f}"]
            began = time.perf_counter()
            trained = train_gate(data, fit.kernel, "marginal", 5.0)
            row += cost(trained, time.perf_counter() - began)
            print("|", " | ".join([*row, f"{mean(test, _latent_loss, trained.kernel):.4f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
