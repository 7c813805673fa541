"""Print the tables of docs/results.md that are computed from cached scores: gates of every kind, the base frozen.

    for split in train dev test; do
      colm run --base BASE --expert EXPERT --data texts/$split.jsonl --trainable gate --until gate --out scores/$split
    done
    colm run --base BASE --expert EXPERT --data texts/train.jsonl --trainable gate --until train --out RUN
    python -m docs.tables.real_gates --base BASE --expert EXPERT --texts texts --scores scores --team RUN/train/team

TEXTS is what `docs.tables.real_texts` wrote, SCORES/SPLIT a run of colm run --until gate on TEXTS/SPLIT.jsonl: hidden
states of the base, and scores of both models, at every unit. The gate of RUN is compared with others, fitted here.
Bits per byte are over texts; intervals are 95 %, of paired differences, texts resampled 2,000 times.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import log
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from colm_jax.checkpoints.outline import Outline, outline_team
from colm_jax.checkpoints.team import load_base
from colm_jax.data.records import read_jsonl
from colm_jax.evaluation.mixture import fit_mixture
from colm_jax.labels import weak_labels
from colm_jax.models.decoder import Decoder
from colm_jax.models.uncertainty import uncertainty
from colm_jax.parallel import make_mesh
from colm_jax.scoring import NEVER, load_scores, open_hidden
from colm_jax.settings.training import GateInit
from colm_jax.training.gate_fit import initial_gate, train_gate
from colm_jax.training.positions import Positions

SAMPLES = 2000
SPLITS = ("train", "dev", "test")
Cells = list[list[str | float]]  # of a table
POSITIVE_WEIGHT = 5.0  # of weak supervision, as in training
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Units:
    """The units of a file's texts that count."""

    models: Float[np.ndarray, "N 2"]  # scores of base and expert, nats
    is_argmax: Bool[np.ndarray, "N 2"]  # the model's greedy choice is the unit
    hidden: Float[np.ndarray, "N D"]  # what the gate reads
    text: Int[np.ndarray, "N"]  # number of its text
    domain: np.ndarray  # [N] str, of its text
    bytes: Int[np.ndarray, "T"]  # of each text

    @property
    def written(self) -> Bool[np.ndarray, "N"]:
        """Whether an expert can write the unit: not an end of text between spans, which adds no text."""
        return self.models[:, 1] > NEVER

    def where(self, kept: Bool[np.ndarray, "N"]) -> "Units":
        """Return some of the units; the numbers of texts stay."""
        fields = ("models", "is_argmax", "hidden", "text", "domain")
        return replace(self, **{name: getattr(self, name)[kept] for name in fields})

    def of(self, domain: str | None) -> "Units":
        """Return the units of a domain; None: all."""
        return self if domain is None else self.where(self.domain == domain)


def read_units(outline: Outline, file: Path, run: Path) -> Units:
    """Read a scored file. Raises UserError where the scores are of other texts or tokenizers."""
    records = read_jsonl(file)
    examples = outline.encode_examples(records, str(file))
    counted = [item.counted[1:] for item in examples.items]
    scores = [load_scores(run / "scores" / name, examples) for name in ("base", "expert-1")]
    flat = np.concatenate(counted)
    text = np.concatenate([np.full(int(own.sum()), i) for i, own in enumerate(counted)])
    assert examples.text_bytes is not None  # of texts in memory
    return Units(
        models=np.stack([np.concatenate(s.log_prob)[flat] for s in scores], -1),
        is_argmax=np.stack([np.concatenate(s.is_argmax)[flat] for s in scores], -1),
        hidden=np.concatenate(open_hidden(run / "hidden", examples)),
        text=text,
        domain=np.array([record["domain"] for _, record in records])[text],
        bytes=np.asarray(examples.text_bytes),
    )


def positions_of(units: Units, labels: str) -> Positions:
    """Return the units as a gate's training reads them."""
    return Positions(
        hidden=(units.hidden,),
        base_log_prob=units.models[:, 0],
        expert_log_probs=units.models[:, 1:],
        labels=weak_labels(units.is_argmax[:, 0], units.is_argmax[:, 1:], labels),
    )


def penalised(
    units: Units, dev: Units, weak: str | None = None, start: str | None = None
) -> tuple[Float[np.ndarray, "D 1"], float]:
    """Return a gate with an L2 penalty, and the penalty, RIDGES' best on dev units.

    With one expert the losses are those of logistic units, so L-BFGS on cached states needs no device.

    Args:
      units: of the training texts.
      dev: of other texts.
      weak: labels of weak supervision, "a" or "b"; None: the marginal likelihood.
      start: labels, "a" or "b", to which the gate is fitted first; None: each fit starts from that of the next larger
        penalty, the first from zero.
    """
    hidden, ahead = units.hidden, np.subtract(units.models[:, 1], units.models[:, 0], dtype=np.float64)

    def marginal(logit: Float[np.ndarray, "N"]) -> tuple[np.ndarray, np.ndarray]:
        losses = np.logaddexp(0, logit) - np.logaddexp(0, logit + ahead)
        return losses, expit(logit) - expit(logit + ahead)

    def on_labels(labels: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        def loss(logit: Float[np.ndarray, "N"]) -> tuple[np.ndarray, np.ndarray]:
            losses = POSITIVE_WEIGHT * labels * np.logaddexp(0, -logit) + (1 - labels) * np.logaddexp(0, logit)
            return losses, (1 - labels) * expit(logit) - POSITIVE_WEIGHT * labels * expit(-logit)

        return loss

    def fit(loss: Callable, kernel: Float[np.ndarray, "D"], ridge: float) -> Float[np.ndarray, "D"]:
        def objective(kernel: Float[np.ndarray, "D"]) -> tuple[float, Float[np.ndarray, "D"]]:
            losses, slopes = loss((hidden @ kernel.astype(np.float32)).astype(np.float64))
            slope = slopes.astype(np.float32) @ hidden / len(slopes)
            return float(losses.mean() + ridge / 2 * kernel @ kernel), slope.astype(np.float64) + ridge * kernel

        return minimize(objective, kernel, method="L-BFGS-B", jac=True, options={"maxiter": 500}).x

    def labels_of(method: str) -> np.ndarray:
        return np.asarray(positions_of(units, method).labels, np.float64).reshape(len(hidden))

    loss = marginal if weak is None else on_labels(labels_of(weak))
    kernel, found = np.zeros(hidden.shape[1]), []
    for ridge in sorted(RIDGES, reverse=True):
        if start is not None:
            kernel = fit(on_labels(labels_of(start)), np.zeros(hidden.shape[1]), ridge)
        kernel = fit(loss, kernel, ridge)
        gate = kernel[:, None].astype(np.float32)
        found.append((rate(dev, gated(dev, gate)), ridge, gate))
    _, ridge, gate = min(found, key=lambda entry: entry[:2])
    return gate, ridge


def fitted(
    units: Units, objective: str = "marginal", labels: str = "a", solver: str = "newton", start_only: bool = False
) -> Float[np.ndarray, "D 1"]:
    """Return the kernel of a gate that `colm run --trainable gate` would fit to these units."""
    positions = positions_of(units, labels)
    settings = GateInit(solver=solver, label_method=labels)
    start = initial_gate(positions, settings, np.zeros(units.hidden.shape[1], np.float32)).kernel
    return start if start_only else train_gate(positions, start, objective, POSITIVE_WEIGHT).kernel


def with_uncertainty(units: Units, decoder: Decoder, outline: Outline) -> Units:
    """Return the units with the base's uncertainty beside its hidden states, as --gate_inputs uncertainty has them."""

    @jax.jit
    def compute(hidden: Float[np.ndarray, "n D"]) -> Float[jax.Array, "n 3"]:
        return uncertainty(decoder.logits(hidden, outline.allowed))

    padded = np.pad(units.hidden, ((0, -len(units.hidden) % 256), (0, 0)))
    found = np.concatenate([compute(padded[i : i + 256]) for i in range(0, len(padded), 256)])[: len(units.hidden)]
    return replace(units, hidden=np.column_stack([units.hidden, found]).astype(np.float32))


# Bits of every unit under a way of writing: what the tables compare.


def bits_of(units: Units, log_weights: Float[np.ndarray, "*N 2"]) -> Float[np.ndarray, "N"]:
    """Return the bits of units under a mixture of the models."""
    return -logsumexp(units.models.astype(np.float64) + log_weights, axis=1) / log(2)


def mixed(units: Units, weight: float) -> Float[np.ndarray, "N"]:
    """Return the bits of units under a constant mixture; `weight` is the expert's."""
    with np.errstate(divide="ignore"):
        return bits_of(units, np.log([1 - weight, weight]))


def gated(units: Units, kernel: Float[np.ndarray, "D 1"]) -> Float[np.ndarray, "N"]:
    """Return the bits of units under a gate."""
    logit = (units.hidden @ kernel)[:, 0].astype(np.float64)
    return bits_of(units, -np.logaddexp(0, np.stack([logit, -logit], -1)))


def switched(units: Units, expert: Bool[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Return the bits of units of which each is written by one model."""
    return -np.where(expert, units.models[:, 1], units.models[:, 0]).astype(np.float64) / log(2)


def deferred(units: Units, kernel: Float[np.ndarray, "D 1"]) -> Float[np.ndarray, "N"]:
    """Return the gate's probability of the expert."""
    return expit((units.hidden @ kernel)[:, 0].astype(np.float64))


def rate(units: Units, bits: Float[np.ndarray, "N"]) -> float:
    """Return bits per byte."""
    return float(bits.sum() / units.bytes[np.unique(units.text)].sum())


def gain(units: Units, worse: Float[np.ndarray, "N"], better: Float[np.ndarray, "N"]) -> str:
    """Return by how many bits per byte `better` is lower, with its 95 % interval over texts."""
    texts, places = np.unique(units.text, return_inverse=True)
    return with_interval(np.bincount(places, worse - better), units.bytes[texts])


def with_interval(saved: Float[np.ndarray, "T"], size: Int[np.ndarray, "T"]) -> str:
    """Return saved bits per byte with their 95 % interval over texts; given are the bits and bytes of each text."""
    drawn = np.random.default_rng(0).integers(0, len(saved), (SAMPLES, len(saved)))
    low, high = np.quantile(saved[drawn].sum(axis=1) / size[drawn].sum(axis=1), [0.025, 0.975])
    return f"{saved.sum() / size.sum():.3f} ({low:.3f} to {high:.3f})"


def expert_weight(units: Units) -> float:
    """Return the expert's weight in the best constant mixture."""
    return float(fit_mixture(units.models)[1])


def best_threshold(units: Units, kernel: Float[np.ndarray, "D 1"], score: Callable[[np.ndarray], float]) -> float:
    """Return the threshold of the highest score of "the expert writes", of 101 quantiles of p_defer."""
    p = deferred(units, kernel)
    grid = np.append(np.quantile(p, np.linspace(0, 1, 101)), -1.0)  # at -1 the expert writes everything
    return float(max(grid, key=lambda eta: score(p > eta)))


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in row)} |")


@dataclass(frozen=True, eq=False)  # hashed by identity
class Study:
    """Units of the three files, without ends of text in dev and test."""

    train: Units
    dev: Units
    test: Units
    trained: Float[np.ndarray, "D 1"] | None = None  # the gate of a run on the training texts

    @property
    def domains(self) -> list[str]:
        """The names of the domains."""
        return sorted({*self.train.domain.tolist()})

    @cache  # noqa: B019  the studies live as long as the program
    def penalised(self, domain: str | None = None) -> tuple[Float[np.ndarray, "D 1"], float]:
        """Return the gate with the best penalty, and the penalty, of a domain's texts; None: of all."""
        return penalised(self.train.of(domain), self.dev.of(domain))

    def main_tables(self) -> None:
        """Bits per byte of models, mixtures, gates and the oracle; choices by a threshold."""
        assert self.trained is not None  # only the first study has tables of it
        joint = self.penalised()[0]
        own = {domain: self.penalised(domain)[0] for domain in self.domains}
        weights = {domain: expert_weight(self.dev.of(domain)) for domain in (None, *self.domains)}
        by_bits = best_threshold(self.dev, joint, lambda choice: -rate(self.dev, switched(self.dev, choice)))
        by_choice = best_threshold(self.dev, joint, lambda choice: right(self.dev, choice))
        bits: Cells = []
        gains: Cells = []
        hard: Cells = []
        for domain in (*self.domains, None):
            units, name = self.test.of(domain), domain or "all"
            p = deferred(units, joint)
            parts = [self.test.of(d) for d in ([domain] if domain else self.domains)]
            owned = np.concatenate([gated(part, own[str(part.domain[0])]) for part in parts])
            fixed = np.concatenate([mixed(part, weights[str(part.domain[0])]) for part in parts])
            whole = np.concatenate([part.text for part in parts])
            ordered = np.argsort(whole, kind="stable")  # as the units of all domains are
            owned, fixed = owned[ordered], fixed[ordered]
            models = [switched(units, np.full(len(units.text), bool(m))) for m in (0, 1)]
            constant, team, best = mixed(units, weights[None]), gated(units, joint), units.models.max(axis=1) / -log(2)
            columns = [*models, constant, fixed, gated(units, self.trained), team, owned, best]
            bits.append(
                [name, len(np.unique(units.text)), *(rate(units, column) for column in columns), float(p.mean())]
            )
            share = (rate(units, constant) - rate(units, team)) / (rate(units, constant) - rate(units, best))
            gains.append(
                [name, gain(units, constant, team), gain(units, fixed, team), gain(units, fixed, owned), share]
            )
            chosen, asked = p > by_bits, p > by_choice
            by_model = [*units.is_argmax.mean(axis=0).tolist(), right(units, asked)]
            hard.append([name, *(rate(units, x) for x in (*models, switched(units, chosen), best))])
            hard[-1] += [
                float(chosen.mean()),
                *by_model,
                float(units.is_argmax.any(axis=1).mean()),
                float(asked.mean()),
            ]
        head = [
            "test texts of",
            "texts",
            "base",
            "expert",
            "mixture",
            "mixture of its own",
            "team, no penalty",
            "team",
            "own gate",
            "oracle",
        ]
        table("Bits per byte", [*head, "mean p_defer"], bits)
        head = ["test texts of", "mixture − team", "mixture of its own − team", "mixture of its own − own gate"]
        table("Differences in bits per byte", [*head, "share of mixture − oracle"], gains)
        head = ["test texts of", "base", "expert", "gate chooses", "oracle", "deferred"]
        head += ["base right", "expert right", "gate's choice right", "either right", "deferred then"]
        table(f"One model a unit: bits per byte at η = {by_bits:.3f}; right at η = {by_choice:.3f}", head, hard)

    def variant_tables(self) -> None:
        """The gate as trained, with a penalty and as initialised; gates of one domain on the others."""
        constant = mixed(self.test, expert_weight(self.dev))
        rows: Cells = []
        assert self.trained is not None
        best, ridge = self.penalised()
        for name, kernel in {
            "marginal": self.trained,
            f"marginal, penalty {ridge:g}": best,
            "initialisation alone, labels a": fitted(self.train, start_only=True),
        }.items():
            rows.append([name, *self.row(kernel, constant)])
        for labels in ("a", "b"):
            for name, ways in {
                "marginal, started from": {"start": labels},
                "weak supervision on": {"weak": labels},
            }.items():
                kernel, ridge = penalised(self.train, self.dev, **ways)
                rows.append([f"{name} labels {labels}, penalty {ridge:g}", *self.row(kernel, constant)])
        table("Variants", ["gate", *self.row_head], rows)
        cross: Cells = []
        for source in (*self.domains, None):
            kernel = self.penalised(source)[0]
            parts = [self.test.of(domain) for domain in (*self.domains, None)]
            cross.append([source or "all", *(rate(part, gated(part, kernel)) for part in parts)])
        for name, weight in {"mixture, all": expert_weight(self.dev), "base": 0.0}.items():
            parts = [self.test.of(domain) for domain in (*self.domains, None)]
            cross.append([name, *(rate(part, mixed(part, weight)) for part in parts)])
        table("Gate of one domain (row) on another (column)", ["gate of", *self.domains, "all"], cross)

    row_head = (
        "on training texts",
        "team",
        "mixture − team",
        "mean p_defer",
        "choices: bits per byte",
        "choices: deferred",
        "choices: right",
    )

    def row(
        self, kernel: Float[np.ndarray, "D 1"], constant: Float[np.ndarray, "N"], fitted_to: Units | None = None
    ) -> list[str | float]:
        """Return what a gate gives on the test texts; thresholds of its choices are the best of the dev texts."""
        p, team = deferred(self.test, kernel), gated(self.test, kernel)
        by_bits = best_threshold(self.dev, kernel, lambda choice: -rate(self.dev, switched(self.dev, choice)))
        by_choice = best_threshold(self.dev, kernel, lambda choice: right(self.dev, choice))
        chosen = rate(self.test, switched(self.test, p > by_bits)), float((p > by_bits).mean())
        known = self.train if fitted_to is None else fitted_to
        known = known.where(known.written)
        return [
            rate(known, gated(known, kernel)),
            rate(self.test, team),
            gain(self.test, constant, team),
            float(p.mean()),
            *chosen,
            right(self.test, p > by_choice),
        ]

    def amounts(self, half: set[int], name: str) -> Cells:
        """Return the rows of gates of half of the texts, whose numbers are given, and of all; and with a penalty."""
        constant = mixed(self.test, expert_weight(self.dev))
        less = self.train.where(np.isin(self.train.text, list(half)))
        rows: Cells = []
        for amount, units in {"half of the texts": less, "all texts": self.train}.items():
            kernel, ridge = penalised(units, self.dev) if units is less else self.penalised()
            rows.append([f"{name}, {amount}, penalty {ridge:g}", *self.row(kernel, constant, units)])
        return rows


def right(units: Units, expert: Bool[np.ndarray, "N"]) -> float:
    """Return the share of units that are the greedy choice of the model that writes them."""
    return float(np.where(expert, units.is_argmax[:, 1], units.is_argmax[:, 0]).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "expert"):
        parser.add_argument(f"--{name}", required=True, metavar="MODEL")
    for name in ("texts", "scores", "team"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    flags = parser.parse_args()
    outline = outline_team(flags.base, [flags.expert], weights=True)
    units = {split: read_units(outline, flags.texts / f"{split}.jsonl", flags.scores / split) for split in SPLITS}

    def study(units: dict[str, Units], trained: Float[np.ndarray, "D 1"] | None = None) -> Study:
        known = {split: own if split == "train" else own.where(own.written) for split, own in units.items()}
        return Study(**known, trained=trained)

    base = load_base(flags.team, "float32", make_mesh(1, 1, 1))
    assert base.gate is not None  # of a team
    plain = study(units, np.asarray(base.gate.kernel[...]))
    print(
        f"{ {split: len(own.text) for split, own in units.items()} } units; expert's weight in the mixture of all "
        f"dev texts {expert_weight(plain.dev):.3f}, of each domain's "
        f"{ {d: round(expert_weight(plain.dev.of(d)), 3) for d in plain.domains} }"
    )
    plain.main_tables()
    plain.variant_tables()
    known = [
        json.loads(line) for line in (flags.texts / "half" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [json.loads(line) for line in (flags.texts / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    half = {i for i, line in enumerate(lines) if line in known}
    wide = study({split: with_uncertainty(own, base.decoder, outline) for split, own in units.items()})
    rows = plain.amounts(half, "hidden state") + wide.amounts(half, "hidden state and uncertainty")
    table("Distance to the oracle", ["gate", *Study.row_head], rows)


if __name__ == "__main__":
    main()
