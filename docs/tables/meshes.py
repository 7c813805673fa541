"""Write the table of docs/meshes.md: meshes that fit Llama-2 7B with a 70B expert, from 8 to 256 chips.

python -m docs.tables.meshes v5e:2x4 v5e:4x4 ...
"""

import argparse
from pathlib import Path

from colm_jax.checkpoints.huggingface import read_config
from colm_jax.plan.plan import Plan, compile_plan, topology_devices
from colm_jax.settings.training import Training

MODELS = Path(__file__).parents[2] / "configs/models"
TENSOR = 8  # the number of key and value heads of the 70B model
PROGRAMS = ("train", "score expert-1", "decode")


def rows_of(topology: str, base, expert):
    """Return a row per program: the base over fsdp with one text per chip, experts over fsdp and tensor."""
    chips = len(topology_devices(topology))
    for program in PROGRAMS:
        mesh = (1, chips, 1) if program == "train" else (1, chips // TENSOR, TENSOR)
        for dtype in ("bfloat16", "int8"):
            training = Training(batch_size=chips, remat="full")
            plan = Plan(topology, base, (expert,), mesh=mesh, expert_dtype=dtype, training=training)
            cost = next(cost for cost, _ in compile_plan(plan, only=program))
            if cost.fits:
                break
        held, gib = sum(cost.resident.values()) / 2**30, cost.peak / 2**30
        shown = {"train": "train base", "score expert-1": f"score expert, {dtype}", "decode": f"decode, expert {dtype}"}
        milliseconds = f"{1e3 * cost.seconds_at_peak:.0f}" if cost.seconds_at_peak > 5e-4 else "<1"
        yield (
            f"| {topology} | {chips} | {shown[program]} | {','.join(map(str, mesh))} | {held:.1f} | {gib:.1f} "
            f"| {'yes' if cost.fits else 'no'} | {cost.flops / 1e12:.2f} | {milliseconds} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topologies", nargs="+")
    topologies = parser.parse_args().topologies
    base, expert = (read_config(MODELS / name) for name in ("llama2-7b", "llama2-70b"))
    print("| topology | chips | program | mesh | held, GiB | peak, GiB | fits | Tflop a chip | ms at peak rate |")
    print("|" + " --- |" * 9)
    for topology in topologies:
        for row in rows_of(topology, base, expert):
            print(row, flush=True)


if __name__ == "__main__":
    main()
