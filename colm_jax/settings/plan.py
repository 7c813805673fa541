"""Settings of `colm plan`: the sizes that are compiled, how much there is to do, and what is assumed of the machine."""

from dataclasses import dataclass

from colm_jax.settings.fields import setting, validate


@dataclass(frozen=True)
class PlanSize:
    """The sizes of the programs that a plan compiles."""

    length: int = setting(2048, help="tokens of a text", least=1, metavar="T")
    rows: int = setting(8, help="texts decoded at once", least=1, metavar="B")

    def __post_init__(self):
        """Validate the settings."""
        validate(self)


@dataclass(frozen=True)
class Workload:
    """How much a run has to do."""

    texts: int = setting(help="training texts", least=1, metavar="N")
    tokens: int = setting(help="tokens of all of them, each cut at the length", least=1, metavar="N")
    prompts: int = setting(0, help="prompts to answer", least=0, metavar="N")
    prompt_tokens: int = setting(128, help="tokens of each prompt", least=1, metavar="N")
    new_tokens: int = setting(256, help="tokens of each answer", least=1, metavar="N")
    deferral_rate: float = setting(
        0.2, help="expected share of new tokens that experts write, all experts together", least=0, most=1, metavar="R"
    )
    # Seconds that it took to count the texts, on the machine that planned.
    tokenising: float | None = None

    def __post_init__(self):
        """Validate the settings."""
        validate(self)


@dataclass(frozen=True)
class Rates:
    """What is assumed of machine, disk and price."""

    # Of the products that the programs make, those made again for the gradient included. Llama-2 and Llama-3 models of
    # 8 to 70 billion train on v6e at 0.44 to 0.50 and on v5p at 0.65, those not counted (maxtext.readthedocs.io,
    # "Optimized models tiering"); this project was not measured on a TPU.
    efficiency: float = setting(
        0.4, help="share of the chip's peak rate that matrix products reach", above=0, most=1, metavar="X"
    )
    disk_bandwidth: float = setting(
        0.2, help="GB a second of the disk of results, a network disk", above=0, metavar="GB/S"
    )
    # `python -m docs.tables.input_rate`: 3.1e7 with one of 2 CPU cores and files in memory; a tenth of it.
    input_rate: float = setting(
        3e6, help="tokens a second that a host makes into training batches", above=0, metavar="N"
    )
    price_per_chip_hour: float | None = setting(None, help="in any currency", above=0, metavar="P")

    def __post_init__(self):
        """Validate the settings."""
        validate(self)
