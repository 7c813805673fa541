"""The commands, a module each: `add_flags(parser)` declares its flags, `run(flags)` does its work.

Modules are imported when their command is called, and import what is heavy when they run, so that `colm --help` and a
mistyped flag answer at once.
"""

# What one does -> the commands for it, with what `colm --help` says of each.
GROUPS: dict[str, dict[str, str]] = {
    "try": {
        "demo": "Offline demo: train a small pair, run the whole pipeline, show what it gains.",
        "inspect": "What a model is, what will be loaded, how it is sharded; of several, whether they can pair.",
    },
    "train": {
        "run": "The whole pipeline: score, label, fit the gate, train, calibrate, generate, evaluate, report.",
        "train": "Train a gate (and its base) for a pair; write the team.",
        "refresh": "Give a trained team other experts; the base stays as it is.",
        "score": "Log-probability of every token of a data file under one model.",
        "calibrate": "Choose the threshold on a dev file.",
        "convert": "Data lines of a data set's official file.",
    },
    "use": {
        "generate": "Answer prompts; each generated token says who wrote it.",
        "serve": "A team behind OpenAI's API, and a page that shows who wrote what.",
        "show": "A run's results and answers in the terminal, each word by its writer.",
        "export": "Write a run's team, or its gate alone, for use elsewhere.",
        "push": "Publish a team, or a gate, on the Hub.",
    },
    "evaluate": {
        "evaluate": "Grade generated answers.",
        "judge": "MT-Bench and AlpacaEval: prompts, and answers as their judges read them.",
        "lm_eval": "lm-evaluation-harness with teams as the model colm_jax.",
    },
    "plan and scale": {
        "config": "Every setting of a run and where its value comes from; nothing is run.",
        "check": "Validate another command's flags and settings; nothing is read or run.",
        "sweep": "Many runs that differ in a few settings; common stages are computed once.",
        "plan": "Compile a run for TPU topologies without hardware: memory and work per chip, cost.",
        "bench": "The performance tables of the docs.",
    },
}
SUMMARIES = {name: summary for group in GROUPS.values() for name, summary in group.items()}
