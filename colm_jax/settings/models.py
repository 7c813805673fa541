"""Settings of a model: how its weights are held, and on which mesh."""

from dataclasses import dataclass

from colm_jax.errors import UserError
from colm_jax.settings.fields import setting, validate

FLOAT_TYPES = ("float32", "bfloat16", "float16")
# Everything that names a model.
MODEL = (
    "a Hugging Face directory (also of a quantised checkpoint), a team, FILE.gguf, or on the Hub "
    "OWNER/NAME[:FILE.gguf][@REVISION]"
)
EXPERT = f"{MODEL}, or an OpenAI-compatible endpoint, http(s)://HOST:PORT/v1#NAME"
# How the texts of a team are cut into the parts that one model writes.
SPANS = {
    "auto": "tokens where base and experts share a tokenizer and have their weights here, else spans of text",
    "tokens": "single tokens; all models must share a tokenizer",
    "text": "spans of text, as with different tokenizers",
}
QUANTISED = ("int8", "int4")  # of experts only: weights in so many bits, the rest in the base's dtype
EXPERT_DTYPES = (*FLOAT_TYPES, *QUANTISED)


@dataclass(frozen=True)
class Model:
    """How a model is loaded. In gin, bind it by scope: base/Model.dtype, expert/Model.dtype; Model.dtype is of both."""

    dtype: str = setting(
        "float32",
        help="of weights, activations and caches (trained weights: float32); experts also int8, int4: weights only; "
        "docs/families.md says when the kernels of a quantised checkpoint stay as stored",
        choices=EXPERT_DTYPES,
    )
    mesh: tuple[int, int, int] = setting((1, 1, 1), help="devices along data, fsdp, tensor", least=1, metavar="D,F,T")

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Model.")


def is_endpoint(model: object) -> bool:
    """Return whether a model's name is the address of an endpoint."""
    return str(model).lower().startswith(("http://", "https://"))


def check_base_dtype(dtype: str) -> None:
    """Raise UserError where a base would be quantised."""
    if dtype in QUANTISED:
        raise UserError(f"base/Model.dtype {dtype!r}: only experts are quantised; use one of {', '.join(FLOAT_TYPES)}")
