"""The scoring baseline: log-probabilities of the same texts by transformers' model, in padded batches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from colm_jax.bench.torch_model import torch_model
from colm_jax.models.decoder import Decoder


class TorchScore:
    """Scoring with transformers' model: batches of texts in their order, each padded to its longest text."""

    def __init__(self, decoder: Decoder, texts: Sequence[Int[np.ndarray, "_"]], batch_size: int):
        """Create the model with the decoder's weights, and the batches.

        Args:
          decoder: the model, float32.
          texts: token ids of each text.
          batch_size: texts of a batch.
        """
        import torch

        self._torch, self._model = torch, torch_model(decoder).eval()
        self._batches = []
        for first in range(0, len(texts), batch_size):
            batch = texts[first : first + batch_size]
            tokens = np.zeros((len(batch), max(map(len, batch))), np.int64)
            mask = np.zeros_like(tokens)
            for row, text in enumerate(batch):
                tokens[row, : len(text)], mask[row, : len(text)] = text, 1
            self._batches.append((torch.tensor(tokens), torch.tensor(mask), [len(text) for text in batch]))

    def __call__(self, threads: int) -> list[Float[np.ndarray, "_"]]:
        """Return the log-probability of each text's second and later tokens, with the given number of threads."""
        self._torch.set_num_threads(threads)
        found = []
        with self._torch.inference_mode():
            for tokens, mask, lengths in self._batches:
                logits = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
                chosen = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.logsumexp(-1)
                found += [row[: length - 1] for row, length in zip(chosen.numpy(), lengths, strict=True)]
        return found
