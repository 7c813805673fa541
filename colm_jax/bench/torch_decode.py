"""Collaborative decoding as one would write it with transformers and PyTorch: what the engine is compared with.

A plain loop over tokens. The base has a KV cache and reads each token as soon as it is written; the expert has another
and reads, when it is called, all tokens that it has not seen in one pass. Only the last position's logits are computed.
Who writes which token is given: the trace of the engine's own answers.
"""

from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from colm_jax.bench.torch_model import torch_model
from colm_jax.models.decoder import Decoder

CACHES = ("dynamic", "static")  # transformers' DynamicCache, which grows, and StaticCache, of the whole length


class TorchPair:
    """Base and expert under transformers, float32, on the CPU; nothing is sampled."""

    def __init__(self, base: Decoder, expert: Decoder):
        """Copies the decoders' weights."""
        self._models = {"base": torch_model(base).eval(), "expert": torch_model(expert).eval()}

    def write(
        self, prompts: Int[np.ndarray, "B T"], deferred: Bool[np.ndarray, "B N"], cache: str, threads: int
    ) -> Int[np.ndarray, "B N"]:
        """A batch in lockstep: where one row's token is deferred, the expert catches up in all of them.

        Args:
          prompts: of one length.
          deferred: which tokens the expert writes.
          cache: one of CACHES.
          threads: of PyTorch.

        Returns:
          The tokens that were written.
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
        """One request after the other."""
        rows = range(len(prompts))
        return np.concatenate([self.write(prompts[b : b + 1], deferred[b : b + 1], cache, threads) for b in rows])

    def generate(
        self, model: str, prompts: Int[np.ndarray, "B T"], new_tokens: int, threads: int
    ) -> Int[np.ndarray, "B N"]:
        """What transformers' own `generate` writes with "base" or "expert" alone."""
        import torch

        torch.set_num_threads(threads)
        ids = torch.tensor(prompts, dtype=torch.long)
        with torch.inference_mode():
            text = self._models[model].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,  # and no fewer: the models have no end of text
                do_sample=False,
                pad_token_id=0,
            )
        return text[:, ids.shape[1] :].numpy()


class _Reader:
    """A model, and what it has read of a batch."""

    def __init__(self, model: Any, cache: str, length: int):
        from transformers import DynamicCache, StaticCache

        self._model, self._read = model, 0
        self._cache: Any = (
            DynamicCache(config=model.config)
            if cache == "dynamic"
            else StaticCache(config=model.config, max_cache_len=length)
        )
        named = signature(model.forward).parameters
        self._argument = "cache" if "cache" in named else "past_key_values"  # its older name

    def next_token(self, text: Any, end: int) -> Any:
        """Reads all of text[:, :end] that it has not read, in one pass; the most probable next tokens [B]."""
        unread = text[:, self._read : end]
        output = self._model(input_ids=unread, use_cache=True, logits_to_keep=1, **{self._argument: self._cache})
        self._read = end
        return output.logits[:, -1].argmax(dim=-1)


def same_tokens(ours: Int[np.ndarray, "B N"], theirs: Int[np.ndarray, "B N"], what: str) -> None:
    """Raises RuntimeError where two ways to decode have written different tokens."""
    if not np.array_equal(ours, theirs):
        row, token = np.argwhere(ours != theirs)[0].tolist()
        raise RuntimeError(
            f"bench: {what}: token {token} of request {row} is {theirs[row, token]}, the engine wrote "
            f"{ours[row, token]}; times say nothing. Two words may have been all but equally probable: another seed "
            "(DecodeBench.seed) shows whether that is it"
        )
