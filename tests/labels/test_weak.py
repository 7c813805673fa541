import numpy as np
import pytest

from colm_jax.errors import UserError
from colm_jax.labels import weak_labels

BASE = np.array([True, True, False, False])
EXPERTS = np.array([[True, False], [False, False], [True, False], [False, True]])


def test_method_a_wants_the_expert_right_and_the_base_wrong():
    assert weak_labels(BASE, EXPERTS, "a").tolist() == [[False, False], [False, False], [True, False], [False, True]]


def test_method_b_wants_the_base_wrong():
    assert weak_labels(BASE, EXPERTS, "b").tolist() == [[False, False], [False, False], [True, True], [True, True]]


def test_another_method_is_refused():
    with pytest.raises(UserError, match="'c'"):
        weak_labels(BASE, EXPERTS, "c")
