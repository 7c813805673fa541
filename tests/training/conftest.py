import jax
import optax
import pytest


@pytest.fixture(scope="package", autouse=True)
def optax_promotes():
    """Lets Adam's bias correction, in optax, promote the step's int32 implicitly as elsewhere (`strict_promotion`)."""
    correct = optax.tree.bias_correction

    def promoting(*arguments, **named):
        with jax.numpy_dtype_promotion("standard"):
            return correct(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax.tree, "bias_correction", promoting)
        yield
