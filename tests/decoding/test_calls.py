"""Calls to experts: each session gets the units of its own sequences, whatever order experts finish in."""

from colm_jax.data.units import Unit
from colm_jax.decoding.calls import ExpertCalls
from colm_jax.experts.protocol import Call, Written


class Slow:
    """An expert that has finished a call when it has been looked at so often."""

    kind, name, bytes, passes = "remote", "slow", 0, 0

    def __init__(self, looks):
        self.looks, self.pending, self.released, self.waited = looks, [], [], []

    def check(self, prompt, settings, where):
        pass

    def expect(self, sequences, positions=None):
        pass

    def start(self, calls):
        self.pending += [[call.sequence, self.looks] for call in calls]

    def finished(self, wait):
        self.waited.append(wait)
        for call in self.pending:
            call[1] -= 1
        done = [call for call in self.pending if call[1] <= 0 or wait]
        self.pending = [call for call in self.pending if call not in done]
        return [Written(number, Unit(f"{self.looks}", (number,))) for number, _ in done]

    def release(self, sequence):
        self.released.append(sequence)

    def score(self, texts, progress):
        raise AssertionError


def calls(*numbers):
    return [Call(number, None, (), seed=0) for number in numbers]


def test_a_session_gets_its_own_units_and_leaves_those_of_others():
    experts = ExpertCalls([Slow(1)])
    first, second = experts.new_sequence(), experts.new_sequence()
    assert first != second
    experts.start(0, calls(first, second))
    assert [written.sequence for written in experts.finished([first], wait=True)] == [first]
    assert [written.sequence for written in experts.finished([second], wait=False)] == [second]
    assert experts.finished([first, second], wait=False) == []


def test_waiting_for_one_of_several_experts_takes_whichever_is_first():
    quick, slow = Slow(2), Slow(10**6)
    experts = ExpertCalls([slow, quick])
    experts.start(0, calls(0))
    experts.start(1, calls(1))
    assert [written.sequence for written in experts.finished([0, 1], wait=True)] == [1]
    assert not any(slow.waited)  # it would have held up the other
    assert [written.sequence for written in experts.finished([0], wait=True)] == [0]  # now it may


def test_a_sequence_that_has_ended_gets_nothing_more():
    expert = Slow(1)
    experts = ExpertCalls([expert])
    experts.start(0, calls(0))
    experts.release(0)
    assert expert.released == [0]
    assert experts.finished([0], wait=False) == []
    assert experts.finished([0], wait=True) == []  # nothing is asked any more
