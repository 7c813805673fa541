"""Remote experts: OpenAI-compatible endpoints that write and score spans.

address.py      where an endpoint is, and its key
client.py       one request: time limits, retries, what an answer's status means
bodies.py       what is sent; answers.py: what comes back
abilities.py    what an endpoint can do, probed once
endpoint.py     completions and scores, by whichever of these an endpoint has
redaction.py    pseudonyms; ledger.py: what has left the machine, and budgets
writing.py      from continuations to a span
scores.py       from log-probabilities of tokens to scores of spans; scoring.py: of training texts
background.py   requests beside the engine
expert.py       `RemoteExpert`
"""

from colm_jax.experts.remote.abilities import Abilities, ask
from colm_jax.experts.remote.address import Address
from colm_jax.experts.remote.expert import RemoteExpert
from colm_jax.experts.remote.ledger import Ledger
from colm_jax.experts.remote.redaction import Redaction
from colm_jax.experts.remote.scoring import GreedySpans

__all__ = ["Abilities", "Address", "GreedySpans", "Ledger", "Redaction", "RemoteExpert", "ask"]
