"""The training baseline: a fine-tuning step with the same model, batch and optimizer in transformers and PyTorch."""

import numpy as np
from jaxtyping import Int

from colm_jax.bench.torch_model import torch_model
from colm_jax.models.decoder import Decoder


class TorchStep:
    """A fine-tuning step with transformers' model and PyTorch's fused AdamW, as in transformers' Trainer."""

    def __init__(self, decoder: Decoder, tokens: Int[np.ndarray, "B T1"], learning_rate: float):
        """Create the model with the decoder's weights, and its optimizer.

        Args:
          decoder: the model, float32.
          tokens: the batch of every step; all tokens of a text but the first count in the loss.
          learning_rate: the learning rate of AdamW, without weight decay.
        """
        import torch

        self._model = torch_model(decoder).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), learning_rate, weight_decay=0.0, fused=True)
        whole = torch.tensor(tokens, dtype=torch.long)
        self._read, self._targets = whole[:, :-1].contiguous(), whole[:, 1:].reshape(-1)
        self._loss, self._set_threads = torch.nn.functional.cross_entropy, torch.set_num_threads

    def __call__(self, threads: int) -> float:
        """Run a step with the given number of threads; return the loss before it, nats per token."""
        self._set_threads(threads)
        logits = self._model(input_ids=self._read, use_cache=False).logits
        loss = self._loss(logits.flatten(0, 1), self._targets)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()
