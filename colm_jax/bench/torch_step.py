"""The same model, batch and optimizer under transformers and PyTorch: what the fine-tuning step is compared with."""

import numpy as np
from jaxtyping import Int

from colm_jax.bench.torch_model import torch_model
from colm_jax.models.decoder import Decoder


class TorchStep:
    """A step of plain fine-tuning by transformers' own model and PyTorch's fused AdamW, as its Trainer takes it."""

    def __init__(self, decoder: Decoder, tokens: Int[np.ndarray, "B T1"], learning_rate: float):
        """Gives the decoder's weights to transformers.

        Args:
          decoder: the model, float32.
          tokens: the texts of every step; all of a text's tokens but the first count in the loss.
          learning_rate: of AdamW, without weight decay.
        """
        import torch

        self._model = torch_model(decoder).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), learning_rate, weight_decay=0.0, fused=True)
        whole = torch.tensor(tokens, dtype=torch.long)
        self._read, self._targets = whole[:, :-1].contiguous(), whole[:, 1:].reshape(-1)
        self._loss, self._set_threads = torch.nn.functional.cross_entropy, torch.set_num_threads

    def __call__(self, threads: int) -> float:
        """Takes a step with so many threads; the loss before it, nats per token."""
        self._set_threads(threads)
        logits = self._model(input_ids=self._read, use_cache=False).logits
        loss = self._loss(logits.flatten(0, 1), self._targets)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()
