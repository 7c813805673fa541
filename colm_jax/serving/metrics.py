"""Prometheus metrics of a served team."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from colm_jax.decoding.requests import Generation
from colm_jax.serving.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of requests, and a view of what the service counts itself."""

    def __init__(self):
        """Starts at 0."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("colm_requests", "Requests by outcome.", ["route", "outcome"], registry=registry)
        self._tokens = Counter("colm_tokens", "Tokens that were written, by writer.", ["writer"], registry=registry)
        self._prompt_tokens = Counter("colm_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._calls = Counter("colm_expert_calls", "Calls of experts that decided tokens.", registry=registry)
        self._guesses = Counter("colm_speculation_guesses", "Deferred tokens that the base guessed.", registry=registry)
        self._hits = Counter("colm_speculation_hits", "Guesses that the expert confirmed.", registry=registry)
        self.first_token = Histogram(
            "colm_time_to_first_token_seconds", "From arrival to the first token.", buckets=_SECONDS, registry=registry
        )
        self.per_token = Histogram(
            "colm_time_per_token_seconds", "Between the tokens of an answer, mean.", buckets=_SECONDS, registry=registry
        )
        self.whole = Histogram(
            "colm_request_seconds", "From arrival to the end.", ["route"], buckets=_SECONDS, registry=registry
        )

    def watch(self, service: Service) -> None:
        """Show what a service counts, too."""
        self._registry.register(_OfService(service))

    def answered(self, answer: Generation) -> None:
        """Count a finished answer."""
        for source in set(answer.sources):
            self._tokens.labels(writer(source)).inc(answer.sources.count(source))
        self._calls.inc(answer.expert_calls)
        self._guesses.inc(answer.guesses)
        self._hits.inc(answer.hits)

    def asked(self, prompt_tokens: Sequence[int]) -> None:
        """Count the prompts of an accepted request."""
        self._prompt_tokens.inc(sum(prompt_tokens))

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)


def writer(source: int) -> str:
    """Return the name of a writer, as in metrics and files: base, expert-1, ..."""
    return f"expert-{source}" if source else "base"


class _OfService(Collector):
    """What a service counts, read when it is asked for."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        service, engine = self._service, self._service.team.engine
        running, unfinished = service.running, service.unfinished
        yield GaugeMetricFamily("colm_ready", "1 once all programs are compiled.", service.ready.is_set())
        yield GaugeMetricFamily("colm_running", "Answers that have a slot.", running)
        yield GaugeMetricFamily("colm_waiting", "Answers that wait for a slot.", max(0, unfinished - running))
        yield GaugeMetricFamily("colm_slots", "Slots of each batch.", service.fixed.shape.slots)
        yield GaugeMetricFamily("colm_cache_use", "Share of a batch's positions that are in use.", service.cache_use)
        yield CounterMetricFamily("colm_base_steps", "Decode steps of the base.", engine.base_steps)
        passes = CounterMetricFamily("colm_expert_passes", "Passes of experts, or requests to them.", labels=["expert"])
        for number, count in enumerate(engine.expert_passes.tolist(), start=1):
            passes.add_metric([writer(number)], count)
        yield passes
        yield CounterMetricFamily(
            "colm_compilations", "Programs compiled since the server was ready.", service.compilations
        )
