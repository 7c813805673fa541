"""`colm run`: tokens, scores, weak labels, gate initialisation, training, calibration, generation, evaluation, report.

Each stage is a method that says what it reads and what it writes; DESIGN section 2 in code.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax import console
from colm_jax.calibration.threshold import calibrate
from colm_jax.checkpoints.card import model_card
from colm_jax.checkpoints.directory import revision
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.checkpoints.team import Base, load_base, make_gate, save_team
from colm_jax.data.records import Examples
from colm_jax.data.tokens import counts, open_tokens, tokenise
from colm_jax.errors import UserError
from colm_jax.labels import weak_labels
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.answering import evaluate, generate
from colm_jax.pipeline.files import link
from colm_jax.pipeline.inputs import Inputs
from colm_jax.pipeline.stage import Stage, run_in_store
from colm_jax.scoring import Scores, hidden_to_directory, load_scores, open_hidden, score_to_directory
from colm_jax.settings.references import text_of
from colm_jax.settings.run import STAGES, RunConfig
from colm_jax.storage import (
    absolute,
    entries,
    load_array,
    path_of,
    read_json,
    save_array,
    storage_of,
    write_json,
    write_text,
)
from colm_jax.team import CoLM
from colm_jax.text.tokenizer import vocabulary_digest
from colm_jax.training.gate_fit import Fit, initial_gate, train_gate
from colm_jax.training.positions import Positions
from colm_jax.training.trainer import train


class Run(Inputs):
    """A run directory and the stages in it."""

    def __init__(self, config: RunConfig, out: str | Path, store: Path | None = None):
        """Checks every input (see `Inputs`) before anything is computed or written.

        Args:
          config: what to run.
          out: the run directory.
          store: where the stages themselves are kept, for runs that have stages in common: one whose inputs and
            settings equal another run's is done once. The run directory then links to them.

        Raises:
          UserError: a file or model that cannot be used, tokenizers that disagree; a store in a bucket, or for one.
        """
        super().__init__(config)
        self.out, self.store = path_of(out), store
        if store is not None and not all(storage_of(path).has_links for path in (store, self.out)):
            raise UserError(f"--store {store} --out {out}: shared stages are linked and locked; both must be on disk")

    def stage(self, name: str) -> Stage:
        """A stage by name."""
        return Stage(name, self.out / name)

    def do(self, name: str, inputs: dict[str, str], settings: Any, work) -> Stage:
        """Does a stage's work unless it is done (see `Stage.run`), and says so."""
        stage = self.stage(name)
        if self.store is None:
            worked = stage.run(inputs, settings, work)
        else:
            worked = run_in_store(stage, self.store, inputs, settings, work)
        console.errors.print(f"[bold]{name}[/]: {'done' if worked else 'nothing to do'}")
        return stage

    @cached_property
    def training_examples(self) -> Examples:
        """The training texts, on disk."""
        return open_tokens(self.tokens().directory)

    # The stages.

    def tokens(self) -> Stage:
        """The training texts as tokens, on disk."""

        def work(directory: Path) -> None:
            with console.bar("tokenising", bytes_=True) as bar:
                arguments = self.files["data"], self.tokenizer, self.length, directory, self.allowed, bar.to
                on_first(lambda: tokenise(*arguments))

        inputs = {"data": self.file_hashes["data"], "tokenizer": self.tokenizer.digest}
        inputs |= {"shared_vocabulary": vocabulary_digest(self.tokenizer, self.allowed)}
        stage = self.do("tokens", inputs, {"length": self.length}, work)
        console.note(f"{self.files['data']}: {counts(stage.directory)}")
        return stage

    def score(self) -> list[Stage]:
        """Scores of base and experts on the training texts; of the base alone where experts score online."""
        stages = []
        scored = 0 if self.config.online else len(self.config.experts)
        for m, name in enumerate(["base", *(f"expert-{i + 1}" for i in range(scored))]):

            def work(directory: Path, m: int = m, name: str = name) -> None:
                decoder = self.base.decoder if m == 0 else self.load_expert(m - 1)
                examples = self.training_examples
                with console.bar(f"scoring {name}", len(examples.items)) as bar:
                    score_to_directory(decoder, examples, directory, self.allowed, bar.to)

            inputs = {"texts": self._texts_digest, "model": self.hashes[name]}
            directory = self.base_directory if m == 0 else self.expert_directories[m - 1]
            inputs |= {"revision": revision(directory) or "a local directory"}
            inputs |= {"shared_vocabulary": vocabulary_digest(self.tokenizer, self.allowed)}
            dtype = self.config.dtype if m == 0 else self.config.expert_dtype or self.config.dtype
            stages.append(self.do(f"scores/{name}", inputs, {"dtype": dtype}, work))
        return stages

    @property
    def _texts_digest(self) -> str:
        """Of the training texts' token ids and loss masks, all that scores and hidden states know of the data."""
        return self.training_examples.digest(range(len(self.training_examples.items)))

    def _scores(self, name: str) -> Scores:
        return load_scores(self.stage(f"scores/{name}").directory, self.training_examples)

    def _expert_scores(self) -> list[Scores]:
        """Of the training texts; none where experts score online."""
        if self.config.online:
            return []
        return [self._scores(f"expert-{m + 1}") for m in range(len(self.config.experts))]

    def labels(self, scores: Sequence[Stage]) -> Stage | None:
        """Weak labels at every position of the training texts; None without experts, or where they score online and
        no label is read."""
        method = self.config.gate_init.label_method
        if not self.config.experts or (self.config.online and self.config.gate_solver == "zero"):
            return None

        def work(directory: Path) -> None:
            base = np.concatenate(self._scores("base").is_argmax)
            found = [np.concatenate(scores.is_argmax) for scores in self._expert_scores()]
            # Method b, all that an online run may use, looks at the base alone; of experts it takes their number.
            experts = np.stack(found, -1) if found else np.zeros((*base.shape, len(self.config.experts)), bool)
            labels = weak_labels(base, experts, method)
            if not is_first():
                return
            save_array(directory / "labels.npy", labels)
            rates = labels[self.training_examples.counted()].mean(0).tolist()
            write_json(directory / "summary.json", {"method": method, "share_of_ones": rates})

        settings = {"method": method, "experts": len(self.config.experts)}
        return self.do("labels", _digests(scores), settings, work)

    def hidden(self) -> Stage | None:
        """The base's final hidden states at the positions that count; None where no gate is fitted alone.

        No expert is among its inputs, so that it outlives an exchange of experts.
        """
        if self.config.gate_solver == "zero" and self.config.training.trainable != "gate":
            return None

        def work(directory: Path) -> None:
            with console.bar("hidden states", len(self.training_examples.items)) as bar:
                hidden_to_directory(self.base.decoder, self.training_examples, directory, bar.to)

        inputs = {"texts": self._texts_digest, "base": self.hashes["base"]}
        return self.do("hidden", inputs, {"dtype": self.config.dtype}, work)

    def _positions(self, hidden: Stage) -> Positions:
        """The positions of the training texts that count: hidden states on disk, scores and labels in memory."""
        counted = self.training_examples.counted()
        base = np.concatenate(self._scores("base").log_prob)[counted]
        experts = [np.concatenate(scores.log_prob)[counted] for scores in self._expert_scores()]
        return Positions(
            hidden=open_hidden(hidden.directory, self.training_examples),
            base_log_prob=base,
            expert_log_probs=np.stack(experts, -1) if experts else None,
            labels=load_array(self.stage("labels").directory / "labels.npy")[counted],
        )

    def gate(self, labels: Stage | None, hidden: Stage | None) -> Stage:
        """The gate's start."""
        settings = replace(self.config.gate_init, solver=self.config.gate_solver)

        def work(directory: Path) -> None:
            if hidden is None:
                width = read_config(self.base_directory).width
                fit = Fit(np.zeros((width, len(self.config.experts)), np.float32), (), 0)
            else:
                with console.bar("fitting the gate") as bar:
                    fit = initial_gate(self._positions(hidden), settings, self.head_mean, _shown(bar))
            if is_first():
                save_array(directory / "kernel.npy", fit.kernel)
                write_json(directory / "summary.json", {"loss": fit.losses, "passes": fit.passes})

        inputs = _digests([stage for stage in (labels, hidden) if stage is not None])
        inputs |= {} if labels else {"base": self.hashes["base"], "experts": str(len(self.config.experts))}
        return self.do("gate", inputs, settings, work)

    def train(self, scores: Sequence[Stage], gate: Stage, hidden: Stage | None) -> Stage:
        """The trained team, without a threshold yet."""
        settings, online = self.config.training, self.config.online
        # A base that moves has no hidden states to be read again.
        frozen = hidden if settings.trainable == "gate" else None

        def work(directory: Path) -> None:
            kernel = load_array(gate.directory / "kernel.npy")
            decoder, trained = self.base.decoder, make_gate(kernel)
            if frozen is not None:
                positions = self._positions(frozen)
                with console.bar("training the gate") as bar:
                    fit = train_gate(positions, kernel, settings.objective, settings.positive_weight, _shown(bar))
                trained = make_gate(fit.kernel)
                lines = "".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(fit.losses))
                if is_first():
                    write_text(directory / "metrics.jsonl", lines)
            else:
                with console.bar("training") as bar:
                    decoder, trained = train(
                        decoder,
                        trained,
                        self.training_examples,
                        self._scores("base"),
                        self._expert_scores(),
                        settings,
                        directory,
                        lambda step, steps, metrics: bar.to(step, steps, console.of_step(metrics)),
                        self.allowed,
                        self.mesh,
                        [self.load_expert(m) for m in range(len(self.expert_directories))] if online else [],
                        profile_steps=self.config.profile_steps,
                    )
            save_team(
                directory / "team",
                decoder,
                trained,
                self.base_directory,
                self.config.dtype,
                {"threshold": None},
                self.base.defer_embedding,
            )

        inputs = _digests([*scores, gate, *([frozen] if frozen else [])])
        inputs |= {"chat_template": self.tokenizer.template_digest or "none"}
        if online:
            inputs |= {name: digest for name, digest in self.hashes.items() if name.startswith("expert-")}
            inputs |= {"expert_dtype": self.config.expert_dtype or self.config.dtype}
        return self.do("train", inputs, settings, work)

    def _provenance(self) -> dict[str, Any]:
        """What colm.json says of the models, the data and the training."""

        def model(name: str, directory: Path, key: str) -> dict[str, Any]:
            commit = revision(directory)
            shown = name.partition("@")[0] if commit else str(absolute(directory))
            return {"model": shown, "revision": commit, "sha256": self.hashes[key]}

        experts = [
            model(name, directory, f"expert-{m + 1}")
            for m, (name, directory) in enumerate(zip(self.config.experts, self.expert_directories))
        ]
        training = {"objective": text_of(self.config.training.objective), "trainable": self.config.training.trainable}
        used = {split: file for split, file in self.files.items() if split != "test"}
        data = {split: {"file": file.name, "sha256": self.hashes[split]} for split, file in used.items()}
        base = model(self.config.base, self.base_directory, "base")
        return {
            "experts": experts,
            "expert_dtype": self.config.expert_dtype,
            "shared_vocabulary": {
                "words": int(self.allowed.sum()),
                "sha256": vocabulary_digest(self.tokenizer, self.allowed),
            },
            "provenance": {"base": base, "data": data, "training": training},
        }

    @cached_property
    def trained(self) -> Base:
        """The base as it was trained, with its gate."""
        return load_base(self.out / "train" / "team", self.config.dtype, self.mesh, stacked=False)

    @cached_property
    def team(self) -> CoLM:
        """The trained team."""
        return CoLM(self.trained, self.experts, self.expert_tokenizers, self.mesh)

    def calibrate(self, trained: Stage) -> Stage | None:
        """The threshold, and the team directory that holds it; None without a dev file or a strategy that obeys it."""
        if "dev" not in self.records or not self.config.obeys_threshold:
            return None

        def work(directory: Path) -> None:
            with console.bar("calibrating") as bar:
                dev = self.records["dev"], self.examples["dev"]
                result = calibrate(self.team, *dev, self.config.task, self.config.calibration, bar.to)
            if is_first():
                write_json(directory / "calibration.json", result)

        settings = {"calibration": self.config.calibration.__dict__, "task": self.config.task}
        return self.do("calibrate", {"team": trained.digest, "dev": self.hashes["dev"]}, settings, work)

    def finish_team(self, trained: Stage, calibrated: Stage | None) -> Stage:
        """The team directory of the contract, with its threshold, in RUN/team."""

        def work(directory: Path) -> None:
            if not is_first():
                return
            source = trained.directory / "team"
            facts = read_json(source / "colm.json") | self._provenance()
            if calibrated is not None:
                result = read_json(calibrated.directory / "calibration.json")
                facts |= {"threshold": result["threshold"], "calibration": result}
            for path in entries(source):
                target = directory / path.name
                if path.name != "colm.json" and not target.exists():
                    link(path, target)
            write_text(directory / "README.md", model_card(facts))
            write_json(directory / "colm.json", facts)

        inputs = {"train": trained.digest} | ({} if calibrated is None else {"calibrate": calibrated.digest})
        facts = json.dumps(self._provenance(), sort_keys=True)
        inputs |= {"provenance": hashlib.sha256(facts.encode()).hexdigest()}
        return self.do("team", inputs, {}, work)

    def threshold(self) -> float:
        """The calibrated threshold, or 0.5."""
        facts = read_json(self.out / "team" / "colm.json")
        return 0.5 if facts["threshold"] is None else float(facts["threshold"])

    def make_team(self) -> tuple[Stage, Stage | None]:
        """Every stage up to the team with its threshold: the stage `team` and, with a dev file, `calibrate`."""
        scores = self.score()
        labels, hidden = self.labels(scores), self.hidden()
        trained = self.train(scores, self.gate(labels, hidden), hidden)
        calibrated = self.calibrate(trained)
        return self.finish_team(trained, calibrated), calibrated

    def all(self, until: str = "report") -> dict[str, Any]:
        """Every stage in order, the last one `until` (one of STAGES). Returns the evaluation, if it got that far."""
        from colm_jax.pipeline.reporting import study_answers, write_report

        def reached(stage: str) -> bool:
            return STAGES.index(until) <= STAGES.index(stage)

        if reached("tokens"):
            self.tokens()
            return {}
        scores = self.score()
        if reached("score"):
            return {}
        labels = self.labels(scores)
        if reached("labels"):
            return {}
        hidden = self.hidden()
        gate = self.gate(labels, hidden)
        if reached("gate"):
            return {}
        trained = self.train(scores, gate, hidden)
        if reached("train"):
            return {}
        calibrated = self.calibrate(trained)
        team = self.finish_team(trained, calibrated)
        if reached("calibrate"):
            return {}
        generated = generate(self, team)
        if generated is None or reached("generate"):
            return {}
        evaluated = evaluate(self, team, generated)
        if not reached("evaluate"):
            write_report(self, calibrated, generated, evaluated, study_answers(self, team, generated))
        return read_json(evaluated.directory / "evaluation.json")


def _digests(stages: Sequence[Stage]) -> dict[str, str]:
    return {stage.name: stage.digest for stage in stages}


def _shown(bar: console.Bar) -> Callable[[int, float], None]:
    """Tells a bar of a fit's steps."""
    return lambda step, loss: bar.to(step, None, f"loss {loss:.4f}")


def run_pipeline(config, out, store=None, until="report", operative=""):
    """Interim."""
    pipeline = Run(config, out, None if store is None else Path(store))
    assert pipeline.training_examples
    if is_first():
        from colm_jax.storage import make_directory

        make_directory(pipeline.out)
        write_text(pipeline.out / "operative_config.gin", operative)
    if until == "team":
        pipeline.make_team()
        console.errors.print(f"team: {pipeline.out / 'team'}")
    else:
        pipeline.all(until)


def trained_team(run):
    """Interim."""
    team = path_of(run) / "team"
    if not (team / "colm.json").exists():
        raise UserError(f"{run}: no trained team in it (team/colm.json is missing); run colm train or colm run")
    return team
