"""What the routes of the server share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from colm_jax.serving.errors import RETRY, ApiError
from colm_jax.serving.metrics import Metrics
from colm_jax.serving.service import Service
from colm_jax.settings.serving import ServingSettings


@dataclass
class Server:
    """What the routes share."""

    name: str  # of the team, as requests name it
    settings: ServingSettings
    key: str | None = None  # that clients must present
    origins: Sequence[str] = ()  # whose pages may call the API
    hosts: Sequence[str] = ()  # names that requests may have for this server; (): any
    service: Service | None = None  # None while the weights are loaded
    active: int = 0  # requests for answers that are being worked on
    metrics: Metrics = field(default_factory=Metrics)
    began: int = field(default_factory=lambda: int(time.time()))

    @property
    def ready(self) -> Service:
        """The service, once all its programs are compiled.

        Raises:
          ApiError: it loads, or ends.
        """
        if self.service is None or not self.service.ready.is_set():
            raise ApiError(503, "the model is being loaded; try again later", headers={"Retry-After": "5"})
        if self.service.failure is not None:
            raise ApiError(503, "the server has failed; its log says why", headers=RETRY)
        if self.service.draining:
            raise ApiError(503, "the server is being stopped", headers=RETRY)
        return self.service
