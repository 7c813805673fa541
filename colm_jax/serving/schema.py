"""Bodies of requests: OpenAI's fields, and those of a team beside them.

Types are strict: a number in a string is an error. A field that cannot change an answer is accepted. One that would
change it and is not supported is refused unless its value is the neutral one.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from colm_jax.serving.errors import ApiError, bad_request
from colm_jax.serving.service import STOP_IDS

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Id = Annotated[int, Field(ge=0, lt=2**31)]
# The first wrong element is enough; a million errors would take gigabytes.
_Ids = Annotated[list[_Id], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]

# Whose values cannot change an answer here.
_WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",
)
# Supported at one value only, which changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
}


# What a field of several types may be.
_EXPECTED = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists, none of them empty",
    "stop": "a string of 1 to 1000 characters, or up to 16 of them",
    "speculate": 'true, false, "auto", "on" or "off"',
}

B = TypeVar("B", bound=BaseModel)


class StreamOptions(BaseModel):
    """What a stream holds beside its tokens."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(BaseModel):
    """Fields of every request for answers."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[_Number, Field(ge=0)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[_Number, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: Annotated[_Ids, Field(max_length=STOP_IDS)] | None = None
    seed: _Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    threshold: Annotated[_Number, Field(ge=0, le=1)] | None = None
    strategy: str | None = None
    schedule: Literal["constant", "linear", "cosine", "exponential"] | None = None
    warmup: _Count | None = None
    rate: Annotated[_Number, Field(ge=0, le=1)] | None = None
    speculate: bool | Literal["auto", "on", "off"] | None = None
    on_expert_failure: Literal["base", "stop"] | None = None
    expert_prompt: str | None = None
    expert_messages: _Objects | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionBody(_Body):
    """A request to /v1/completions."""

    prompt: str | Annotated[_Texts | _Ids | Annotated[list[_Ids], Field(fail_fast=True)], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None


class ChatBody(_Body):
    """A request to /v1/chat/completions."""

    messages: Annotated[_Objects, Field(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenizeBody(BaseModel):
    """A request to /tokenize: a text, or a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: _Objects | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """A request to /detokenize."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: _Ids


class CandidatesBody(BaseModel):
    """A request to /v1/candidates: what each model would write after these tokens."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: Annotated[_Ids, Field(min_length=1)]
    top: Annotated[int, Field(ge=1, le=20)] = 5


def parse(kind: type[B], body: bytes, ignore_unknown: bool = False) -> B:
    """Return a request's body.

    Args:
      kind: its class.
      body: JSON.
      ignore_unknown: pass over fields that nobody defines.

    Raises:
      ApiError: it is no JSON, or a field is wrong; `param` names the field.
    """
    try:
        fields = _Any.model_validate_json(body).model_extra or {}
    except ValidationError as error:
        raise bad_request(f"the body is no JSON object: {_first(error)[1]}") from None
    if issubclass(kind, _Body):
        for name in _WITHOUT_EFFECT:
            fields.pop(name, None)
        for name, values in _NEUTRAL.items():
            if name in fields and (value := fields.pop(name)) not in values:
                raise bad_request(f"{name} is not supported, got {value!r:.60}; leave it out", name, "unsupported")
    unknown = [name for name in fields if name not in kind.model_fields]
    if unknown and not ignore_unknown:
        raise bad_request(f"unknown field {unknown[0]!r:.60}; leave it out", unknown[0], "unknown_field")
    try:
        return kind.model_validate({name: value for name, value in fields.items() if name in kind.model_fields})
    except ValidationError as error:
        where, message = _first(error)
        field = str(where[0])
        if field in _EXPECTED:
            raise bad_request(f"{field} must be {_EXPECTED[field]}, got {fields.get(field)!r:.60}", field) from None
        raise bad_request(f"{'.'.join(map(str, where))}: {message}", field) from None


class _Any(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


def _first(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Return where the first of the errors is, and what it is, in one short line."""
    found = error.errors(include_url=False, include_context=False)[0]
    got = "" if found["type"] in ("missing", "json_invalid") else f", got {found['input']!r:.60}"
    message = " ".join(f"{found['msg']}{got}".split())
    return found["loc"], message.encode("utf-8", "backslashreplace").decode()


def check_model(named: str | None, served: str) -> None:
    """Raise ApiError where a request names another model."""
    if named is not None and named != served:
        raise ApiError(
            404, f"the model {named!r:.100} is not served here; this is {served!r}", "model", "model_not_found"
        )
