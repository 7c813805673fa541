"""The command line's flags and what `--help` says of them: one subcommand a command."""

import argparse

import colm_jax

_DTYPES = ("float32", "bfloat16", "float16")
_EXPERT_DTYPES = (*_DTYPES, "int8", "int4")
# TASKS of evaluation.tasks, which would take seconds to import; a test compares them.
_TASKS = "exact, number, gsm8k, math, pubmedqa, bioasq"
_GIN = "settings: --gin_file FILE (repeatable) and --gin.NAME=VALUE, e.g. --gin.Training.learning_rate=1e-4"


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="colm",
        description="A small base model writes; a gate, learned without labels, calls an expert for single tokens.",
        epilog=f"Every command takes {_GIN}. `colm COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=colm_jax.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}\n\n{_GIN}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def team(sub: argparse.ArgumentParser, expert_required: bool, bound: bool = False) -> None:
        text = "Hugging Face directory, team, or Hub name" + (" (or bind Run.base)" if bound else "")
        sub.add_argument("--base", required=not bound, metavar="MODEL", help=text)
        experts(sub, expert_required, bound)
        sub.add_argument("--dtype", choices=_DTYPES, help="of weights, activations and caches (default float32)")

    def experts(sub: argparse.ArgumentParser, expert_required: bool, bound: bool = False) -> None:
        text = "repeat for several; default: those that the team names" if not expert_required else "repeatable"
        sub.add_argument(
            "--expert",
            "--expert2",
            action="append",
            required=expert_required and not bound,
            metavar="MODEL",
            help=f"{text} (or bind Run.experts)" if bound else text,
        )
        mesh(sub, "Run.mesh, 1,1,1" if expert_required else "1,1,1")
        expert_mesh(sub)
        sub.add_argument(
            "--expert_dtype",
            choices=_EXPERT_DTYPES,
            help="of the experts; int8, int4: weights only (default: as the team was trained, or --dtype)",
        )

    def mesh(sub: argparse.ArgumentParser, default: str = "1,1,1") -> None:
        text = f"devices along data, fsdp, tensor (default {default})"
        sub.add_argument("--mesh", metavar="D,F,T", help=text)

    def expert_mesh(sub: argparse.ArgumentParser) -> None:
        text = "how the experts lie on the same devices (default: as the base, by --mesh)"
        sub.add_argument("--expert_mesh", metavar="D,F,T", help=text)

    def distributed(sub: argparse.ArgumentParser) -> None:
        text = (
            "this is one of several processes that share the job, its --mesh and its files: auto (Cloud TPU, Slurm, "
            "GKE), or where process 0 listens, how many there are, which this is"
        )
        sub.add_argument("--distributed", metavar="auto|HOST:PORT,COUNT,NUMBER", help=text)

    def expert_scores(sub: argparse.ArgumentParser) -> None:
        text = "cached: scored once beforehand (default); online: in every training step, experts on the mesh"
        sub.add_argument("--expert_scores", choices=("cached", "online"), help=text)

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--objective", choices=("marginal", "em", "sft", "weak"), help="default: marginal")
        sub.add_argument("--trainable", choices=("all", "gate", "lora"), help="what is trained (default: all)")
        expert_scores(sub)
        sub.add_argument("--seed", type=int, help="order of the training texts, 0 (default) to 2^64 - 1")

    sub = command(
        "demo", "Offline demo: trains a small pair, runs the whole pipeline, shows what it gains.", "colm demo"
    )
    sub.add_argument("--out", default="colm-demo", metavar="DIR", help="default: colm-demo")
    sub.add_argument("--seed", type=int, default=0, help="of pair, problems and training (default 0)")

    def whole_run(sub: argparse.ArgumentParser) -> None:
        team(sub, expert_required=True, bound=True)
        training(sub)
        sub.add_argument("--data", metavar="FILE", help="training texts, JSONL (or bind Run.data)")
        sub.add_argument("--dev", metavar="FILE", help="texts for calibration")
        sub.add_argument("--test", metavar="FILE", help="texts for evaluation, JSONL or .txt (default: the dev file)")
        sub.add_argument("--task", metavar="TASK", help=f"metric of answers: {_TASKS} (default: text only)")

    sub = command(
        "run",
        "Tokenise, score, label, fit the gate, train, calibrate, generate, evaluate, report; skips what is done.",
        "colm run --base small --expert large --data train.jsonl --dev dev.jsonl --out RUN",
    )
    whole_run(sub)
    sub.add_argument("--out", required=True, metavar="DIR", help="the run directory")
    text = "keep the stages here, for runs that have stages in common; DIR then links to them (colm sweep does this)"
    sub.add_argument("--store", metavar="DIR", help=text)
    # STAGES of pipeline.config, which would take seconds to import; a test compares them.
    stages = ("tokens", "score", "labels", "gate", "train", "calibrate", "generate", "evaluate", "report")
    sub.add_argument("--until", choices=stages, default="report", help="the last stage to run (default: report)")
    distributed(sub)

    sub = command(
        "config",
        "Every setting of a run, defaults too, as a gin file, and where each value comes from; nothing is run.",
        "colm config --gin_file configs/runs/llama2_7b_llemma_34b_gsm8k.gin --gin_file configs/methods/weak.gin",
    )
    whole_run(sub)
    sub.add_argument("--bare", action="store_true", help="without the comments")

    commands.add_parser(
        "check",
        help="Another command's flags and settings, checked; nothing is read or run.",
        description="Checks the flags and settings of the command that stands behind it; no model or data is read, "
        "nothing is run. The launch scripts call it before they ask for machines.",
        epilog="example: colm check train --base small --expert large --data train.jsonl --out RUN --mesh 1,16,1",
    )

    sub = command(
        "sweep",
        "Many runs that differ in a few settings (Sweep.grid, points, random): stages in common are computed once, "
        "trials that are done are not done again, results go to DIR/results.csv and DIR/report.",
        "colm sweep --gin_file configs/sweeps/demo_methods.gin --out SWEEP --parallel 2\n"
        "         colm sweep --gin_file configs/sweeps/demo_methods.gin --out SWEEP --commands > trials.txt",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="of results, trials and their stages")
    text = "trials at a time, if memory allows (default: half the cores; 1 where there is an accelerator)"
    sub.add_argument("--parallel", type=int, metavar="N", help=text)
    text = "print the command of each trial, to be run as a job of a cluster; afterwards, this command collects"
    sub.add_argument("--commands", action="store_true", help=text)
    sub.add_argument("--trial", metavar="NAME", help="run this trial alone, and write no results but its own")

    sub = command(
        "convert",
        "Data lines (prompt, completion, what the task grades by) of a data set's official file.",
        "colm convert --format gsm8k --data train.jsonl --rows 0:6973 --out data/gsm8k/train.jsonl",
    )
    # FORMATS of data.convert; a test compares them.
    sub.add_argument("--format", required=True, choices=("gsm8k", "math", "pubmedqa", "bioasq"))
    sub.add_argument("--data", required=True, metavar="FILE", help="as published: JSONL or .json")
    text = "these records only, counted from 0, LAST left out; either may be missing (default: all)"
    sub.add_argument("--rows", metavar="FIRST:LAST", help=text)
    sub.add_argument("--out", required=True, metavar="FILE")

    sub = command(
        "score",
        "Log-probability of every token of a data file under one model.",
        "colm score --model M --data F --out DIR",
    )
    sub.add_argument("--model", required=True, metavar="MODEL")
    mesh(sub)
    distributed(sub)
    sub.add_argument("--data", required=True, metavar="FILE")
    sub.add_argument(
        "--dtype", choices=_EXPERT_DTYPES, default="float32", help="default float32; int8, int4: weights only"
    )
    sub.add_argument("--out", required=True, metavar="DIR")

    sub = command(
        "train",
        "Train a gate (and its base) for a pair; the team is written to DIR/team.",
        "colm train --base small --expert large --data train.jsonl --out RUN --trainable gate",
    )
    team(sub, expert_required=True, bound=True)
    training(sub)
    sub.add_argument("--data", metavar="FILE", help="training texts, JSONL (or bind Run.data)")
    sub.add_argument("--out", required=True, metavar="DIR")
    distributed(sub)

    sub = command(
        "refresh",
        "Give a trained team other experts: score them, fit its gate anew, calibrate; the base stays as it is.",
        "colm refresh --run RUN --expert NEW --data train.jsonl --dev dev.jsonl --out DIR",
    )
    sub.add_argument("--run", required=True, metavar="DIR", help="a run with a trained team; nothing in it is changed")
    experts(sub, expert_required=True)
    sub.add_argument("--dtype", choices=_DTYPES, help="of weights and activations (default: as the team is stored)")
    sub.add_argument("--objective", choices=("marginal", "em", "weak"), help="default: marginal")
    sub.add_argument("--data", required=True, metavar="FILE", help="training texts, JSONL")
    sub.add_argument("--dev", required=True, metavar="FILE", help="texts for calibration")
    sub.add_argument(
        "--task", metavar="TASK", help=f"decode and grade the answers: {_TASKS} (default: next-token accuracy)"
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="a run directory of its own; the team is DIR/team")

    sub = command(
        "calibrate",
        "Choose the threshold on a dev file; curve, ROC and reliability of the gate go into the file too.",
        "colm calibrate --base RUN/team --data dev.jsonl --task number --out calibration.json",
    )
    team(sub, expert_required=False)
    sub.add_argument("--data", required=True, metavar="FILE")
    sub.add_argument(
        "--task", metavar="TASK", help=f"decode and grade the answers: {_TASKS} (default: next-token accuracy)"
    )
    sub.add_argument("--out", required=True, metavar="FILE")
    distributed(sub)

    sub = command(
        "generate",
        "Answer prompts; each written token says who wrote it. Finished answers are kept in FILE.part: a run that "
        "was stopped goes on from there.",
        "colm generate --base RUN/team --prompts prompts.jsonl --out answers.jsonl --threshold 0.3",
    )
    team(sub, expert_required=False)
    sub.add_argument(
        "--prompts", required=True, metavar="FILE", help='JSONL: {"prompt"}, {"messages"} or {"input_ids"}; or .txt'
    )
    sub.add_argument("--out", required=True, metavar="FILE")
    sub.add_argument("--threshold", type=float, help="an expert writes where p_defer exceeds it (default: calibrated)")
    sub.add_argument(
        "--strategy",
        default="defer",
        metavar="S",
        help="defer (default), compose, backtrack, lookahead (--gin.Correction.NAME=VALUE), base, expert, random, "
        "confidence, contrastive, contrastive_v2, proxy",
    )
    sub.add_argument("--max_new_tokens", type=int, default=96, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: most probable token (default)")
    sub.add_argument("--top_p", type=float, default=1.0, metavar="P")
    sub.add_argument("--top_k", type=int, default=0, metavar="K", help="0: all (default)")
    text = "sample from tokens at least so probable as this share of the most probable one's (default 0)"
    sub.add_argument("--min_p", type=float, default=0.0, metavar="P", help=text)
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt (default 1)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="0 (default) to 2^64 - 1")
    text = "ends the text; repeatable; special tokens such as <|im_end|> too"
    sub.add_argument("--stop", action="append", metavar="STR", help=text)
    text = "tokens that end the text, beside the model's own end-of-text ids"
    sub.add_argument("--stop_token_ids", type=int, nargs="+", action="extend", metavar="ID", help=text)
    sub.add_argument("--schedule", default="constant", metavar="S", help="constant, linear, cosine, exponential")
    sub.add_argument("--warmup", type=int, default=0, metavar="N", help="tokens over which the threshold falls from 1")
    sub.add_argument("--rate", type=float, default=0.5, help="deferral probability of strategy random")
    sub.add_argument("--batch_size", type=int, default=8, metavar="B", help="answers written side by side (default 8)")
    text = "add each token's log-probability under every model; they read every answer once more"
    sub.add_argument("--log_probs", action="store_true", help=text)
    distributed(sub)

    sub = command(
        "evaluate",
        "Grade generated answers.",
        "colm evaluate --task gsm8k --predictions answers.jsonl --references test.jsonl --out result.json",
    )
    sub.add_argument("--task", required=True, metavar="TASK", help=_TASKS)
    sub.add_argument(
        "--predictions",
        required=True,
        metavar="FILE",
        help="generation lines, of one or more samples a prompt; of bioasq also a submission",
    )
    text = "the right answers: JSONL, or the data set's official .json; pairs by id where both files have it"
    sub.add_argument("--references", required=True, metavar="FILE", help=text)
    text = "other predictions of the same references: difference, its 95 %% interval and p (paired bootstrap)"
    sub.add_argument("--against", metavar="FILE", help=text)
    sub.add_argument("--out", required=True, metavar="FILE")

    commands.add_parser(
        "lm_eval",
        help="lm-evaluation-harness, knowing teams as the model colm_jax (needs the extra eval).",
        description="lm-evaluation-harness, knowing teams as the model colm_jax; all arguments are the harness's.",
    )

    sub = command(
        "judge", "MT-Bench and AlpacaEval: prompts, and answers as their judges read them.", "colm judge prompts"
    )
    steps = sub.add_subparsers(dest="step", required=True, metavar="WHAT")

    def judge(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        step = steps.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        step.add_argument("--judge", required=True, choices=("mt_bench", "alpaca_eval"))
        text = "MT-Bench's question.jsonl, or alpaca_eval's JSON of instructions"
        step.add_argument("--questions", required=True, metavar="FILE", help=text)
        return step

    step = judge(
        "prompts",
        "Prompt lines of the next turn, for colm generate.",
        "colm judge prompts --judge mt_bench --questions question.jsonl --predictions turn1.jsonl --out prompts2.jsonl",
    )
    text = "generation lines of each turn so far, in order; repeatable"
    step.add_argument("--predictions", action="append", default=[], metavar="FILE", help=text)
    step.add_argument("--out", required=True, metavar="FILE")
    step = judge(
        "answers",
        "Generation lines as the file that the judge reads: FastChat's model_answer JSONL, alpaca_eval's outputs JSON.",
        "colm judge answers --judge mt_bench --questions question.jsonl --predictions turn1.jsonl "
        "--predictions turn2.jsonl --name my-team --out model_answer/my-team.jsonl",
    )
    text = "generation lines of each turn, in order; repeatable"
    step.add_argument("--predictions", action="append", required=True, metavar="FILE", help=text)
    step.add_argument("--name", required=True, help="of the team, in the judge's tables")
    step.add_argument("--out", required=True, metavar="FILE")

    sub = command(
        "show",
        "A run's results and answers in the terminal: who wrote which word, and what each model held likely.",
        "colm show RUN --changed\n         colm show RUN --answer 7\n         colm show answers.jsonl --base RUN/team",
    )
    text = "a run (or demo) directory, or a file of generation lines"
    sub.add_argument("path", metavar="RUN_OR_FILE", help=text)
    sub.add_argument("--answer", type=int, metavar="N", help="one answer, token by token; the first is 1")
    text = (
        "only answers of which the expert changed the outcome: right where the base alone is wrong, or wrong where it "
        "is right; without a task, those whose text differs from the base's"
    )
    sub.add_argument("--changed", action="store_true", help=text)
    sub.add_argument("--answers", type=int, default=10, metavar="K", help="at most so many; 0: all (default 10)")
    sub.add_argument("--width", type=int, metavar="COLUMNS", help="of what is printed (default: the terminal's, or 80)")
    text = "whose tokenizer wrote a file of generation lines (default: the team of the run that the file lies in)"
    sub.add_argument("--base", metavar="MODEL", help=text)

    sub = command(
        "inspect",
        "What a model is, what will be loaded, how it would be sharded; of several, whether they can pair.",
        "colm inspect SMALL LARGE",
    )
    sub.add_argument("model", nargs="+", metavar="MODEL", help="the base first")
    sub.add_argument("--json", action="store_true", help="print all facts as JSON, for programs")
    mesh(sub)

    sub = command(
        "plan",
        "Compile a run for TPUs that are not there: memory and work of each chip, whether it fits, what to change.",
        "colm plan --topology v5e:4x4 --base configs/models/llama2-7b --expert configs/models/llama2-70b "
        "--gin.Training.remat=\"'full'\"",
    )
    sub.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="as in v5e:4x4, v5p:2x2x4, v6e:16x16")
    sub.add_argument("--base", required=True, metavar="MODEL", help="only its config.json is read")
    sub.add_argument("--expert", action="append", required=True, metavar="MODEL", help="repeatable")
    mesh(sub, "all chips along fsdp")
    expert_mesh(sub)
    sub.add_argument("--dtype", choices=_DTYPES, default="bfloat16", help="default bfloat16")
    sub.add_argument("--expert_dtype", choices=_EXPERT_DTYPES, help="of the experts (default: --dtype)")
    sub.add_argument("--length", type=int, default=2048, metavar="T", help="tokens of a text (default 2048)")
    sub.add_argument("--rows", type=int, default=8, metavar="B", help="texts decoded at once (default 8)")
    expert_scores(sub)
    sub.add_argument("--objective", choices=("marginal", "em", "sft", "weak"), help="default: marginal")
    sub.add_argument("--trainable", choices=("all", "lora"), help="default: all (a gate alone is fitted on one device)")
    text = "also hours, chip hours and price of a run, and what would hold it up; epochs and batch size are Training's"
    sub.add_argument("--launch", action="store_true", help=text)
    # Defaults are those of plan.workload.Workload and plan.launch.Rates; a test compares them.
    launch = sub.add_argument_group("with --launch: how much there is to do, and what is assumed")
    text = "training texts, counted with the base's tokenizer, each cut at --length"
    launch.add_argument("--data", metavar="FILE", help=text)
    launch.add_argument("--texts", type=int, metavar="N", help="or how many training texts there are")
    text = "and tokens of all of them together (default: --length each)"
    launch.add_argument("--tokens", type=int, metavar="N", help=text)
    launch.add_argument("--prompts", type=int, metavar="N", help="to be answered (default 0)")
    launch.add_argument("--prompt_tokens", type=int, metavar="N", help="of each prompt (default 128)")
    launch.add_argument("--new_tokens", type=int, metavar="N", help="of each answer (default 256)")
    text = "expected share of new tokens that experts write (default 0.2)"
    launch.add_argument("--deferral_rate", type=float, metavar="R", help=text)
    text = "share of the chip's peak rate that matrix products reach (default 0.4)"
    launch.add_argument("--efficiency", type=float, metavar="X", help=text)
    launch.add_argument("--disk_bandwidth", type=float, metavar="GB/S", help="of --out (default 0.2)")
    text = "tokens a second that a host makes into training batches (default 3e6)"
    launch.add_argument("--input_rate", type=float, metavar="N", help=text)
    launch.add_argument("--price_per_chip_hour", type=float, metavar="P", help="in any currency")

    sub = command(
        "export", "Write a run's team for use elsewhere.", "colm export --run RUN --out DIR --format reference"
    )
    sub.add_argument("--run", required=True, metavar="DIR")
    sub.add_argument("--out", required=True, metavar="DIR")
    mesh(sub)
    sub.add_argument("--format", choices=("colm", "reference"), default="colm", help="reference: the original Co-LLM's")

    sub = command("bench", "The performance tables of docs/benchmarks.md.", "colm bench decode")
    benches = sub.add_subparsers(dest="bench", required=True, metavar="WHAT")
    summary = "What Co-LLM adds to a fine-tuning step, in time and memory; a fine-tuning step against PyTorch's."
    sub = benches.add_parser(
        "train",
        help=summary,
        description=f"{summary}\nRandom weights and texts; about 4 minutes on 2 CPU cores. PyTorch is compared "
        "where it is installed; its CPU build is enough.",
        epilog=f"example: colm bench train --repeats 9\nsizes: --gin.TrainBench.width=256, and vocab_size, depth, "
        f"heads, ff, texts, epochs\n\n{_GIN}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--batch_size", type=int, metavar="B", help="texts a step (default 8)")
    sub.add_argument("--length", type=int, metavar="T", help="positions a text (default 256)")
    sub.add_argument("--dtype", choices=_DTYPES, help="of activations (default: float32 on a CPU, else bfloat16)")
    sub.add_argument("--repeats", type=int, metavar="N", help="rounds of interleaved timing (default 5)")
    summary = "What collaborative decoding costs, against its parts, the expert alone, and a plain loop in PyTorch."
    sub = benches.add_parser(
        "decode",
        help=summary,
        description=f"{summary}\nA random pair; which tokens are deferred is forced. Takes about a quarter of an hour"
        " on 2 CPU cores. PyTorch is compared\non the CPU, where it is installed; its CPU build is enough.",
        epilog=f"example: colm bench decode --repeats 5\nsizes: --gin.DecodeBench.expert_width=512, and vocab_size, "
        f"base_width, base_depth, base_heads, base_ff,\nexpert_depth, expert_heads, expert_ff, seed\n\n{_GIN}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--prompt_tokens", type=int, metavar="T", help="of every request (default 100)")
    sub.add_argument("--new_tokens", type=int, metavar="N", help="that every request writes (default 128)")
    rates = "shares of tokens that the expert writes (default 0.05 0.2 0.5)"
    sub.add_argument("--rates", type=float, nargs="+", metavar="R", help=rates)
    sub.add_argument("--batch_size", type=int, metavar="B", help="requests of the larger batch, beside 1 (default 8)")
    dtype = "of weights, activations and caches (default: float32 on a CPU, else bfloat16)"
    sub.add_argument("--dtype", choices=_DTYPES, help=dtype)
    sub.add_argument("--repeats", type=int, metavar="N", help="rounds of interleaved timing (default 3)")
    return parser
