"""The decoding baseline: collaborative decoding with transformers and PyTorch.

It is a plain loop over tokens. Base and expert have a KV cache each; the base processes each token once it is written,
the expert all tokens not in its cache in one pass when it is called. Only the last position's logits are computed. The
deferred tokens are given: those of the engine's own answers.
"""

from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from colm_jax.bench.torch_model import torch_model
from colm_jax.models.decoder import Decoder

CACHES = ("dynamic", "static")  # transformers' DynamicCache (growing) and StaticCache (full length)


class TorchPair:
    """Base and expert in transformers, float32 on the CPU, with greedy decoding."""

    def __init__(self, base: Decoder, expert: Decoder):
        """Copy the decoders' weights."""
        self._models = {"base": torch_model(base).eval(), "expert": torch_model(expert).eval()}

    def write(
        self, prompts: Int[np.ndarray, "B T"], deferred: Bool[np.ndarray, "B N"], cache: str, threads: int
    ) -> Int[np.ndarray, "B N"]:
        """Decode a batch in lockstep: if any row's token is deferred, the expert processes all rows.

        Args:
          prompts: prompts of equal length.
          deferred: whether the expert writes each token.
          cache: one of CACHES.
          threads: the number of PyTorch's threads.

        Returns:
          The written tokens.
        """
        import torch

        torch.set_num_threads(threads)
        batch, start = prompts.shape
        new, calls = deferred.shape[1], np.any(deferred, axis=0)
        base, expert = (_Reader(model, cache, start + new) for model in self._models.values())
        by_expert = torch.tensor(deferred)
        text = torch.zeros((batch, start + new), dtype=torch.long)
        text[:, :start] = torch.tensor(prompts)
        with torch.inference_mode():
            for token in range(new):
                end = start + token
                chosen = base.next_token(text, end)
                if calls[token]:
                    chosen = torch.where(by_expert[:, token], expert.next_token(text, end), chosen)
                text[:, end] = chosen
        return text[:, start:].numpy()

    def write_in_turn(
        self, prompts: Int[np.ndarray, "B T"], deferred: Bool[np.ndarray, "B N"], cache: str, threads: int
    ) -> Int[np.ndarray, "B N"]:
        """Decode the requests one after the other; return the written tokens."""
        rows = range(len(prompts))
        return np.concatenate([self.write(prompts[b : b + 1], deferred[b : b + 1], cache, threads) for b in rows])

    def generate(
        self, model: str, prompts: Int[np.ndarray, "B T"], new_tokens: int, threads: int
    ) -> Int[np.ndarray, "B N"]:
        """Decode with transformers' own `generate` and "base" or "expert" alone; return the written tokens."""
        import torch

        torch.set_num_threads(threads)
        ids = torch.tensor(prompts, dtype=torch.long)
        with torch.inference_mode():
            text = self._models[model].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,  # always reached: the models have no end of text
                do_sample=False,
                pad_token_id=0,
            )
        return text[:, ids.shape[1] :].numpy()


class _Reader:
    """A model with the KV cache of a batch."""

    def __init__(self, model: Any, cache: str, length: int):
        from transformers import DynamicCache, StaticCache

        self._model, self._cached = model, 0
        self._cache: Any = (
            DynamicCache(config=model.config)
            if cache == "dynamic"
            else StaticCache(config=model.config, max_cache_len=length)
        )
        named = signature(model.forward).parameters
        self._argument = "cache" if "cache" in named else "past_key_values"  # the older name

    def next_token(self, text: Any, end: int) -> Any:
        """Process the tokens of text[:, :end] not in the cache in one pass; return the greedy next tokens [B]."""
        new = text[:, self._cached : end]
        output = self._model(input_ids=new, use_cache=True, logits_to_keep=1, **{self._argument: self._cache})
        self._cached = end
        return output.logits[:, -1].argmax(dim=-1)


def same_tokens(ours: Int[np.ndarray, "B N"], theirs: Int[np.ndarray, "B N"], what: str) -> None:
    """Raise RuntimeError if two implementations have written different tokens."""
    if not np.array_equal(ours, theirs):
        row, token = np.argwhere(ours != theirs)[0].tolist()
        raise RuntimeError(
            f"bench: {what}: token {token} of request {row} is {theirs[row, token]}, the engine wrote "
            f"{ours[row, token]}; their times are not comparable. If two tokens were almost equally probable, another "
            "seed (DecodeBench.seed) helps"
        )
