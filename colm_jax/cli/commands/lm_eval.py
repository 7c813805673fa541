"""`colm lm_eval`: lm-evaluation-harness's own command line."""

from colm_jax.cli.flags import Flags, Parser
from colm_jax.errors import UserError

DESCRIPTION = (
    "lm-evaluation-harness with teams as the model colm_jax (needs the extra eval); all arguments are the harness's."
)
EXAMPLE = "colm lm_eval run --model colm_jax --model_args base=RUN/team --tasks gsm8k"
PASSES_ARGUMENTS_ON = True  # to another program, whose flags they are


def add_flags(parser: Parser) -> None:
    """Declare no flags: they are the harness's."""


def run(flags: Flags) -> None:
    """Run the harness."""
    try:
        from colm_jax.evaluation.lm_eval import run_harness
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise UserError("colm lm_eval needs lm-evaluation-harness: pip install 'colm-jax[eval]'") from None
    run_harness(flags.passed_on)
