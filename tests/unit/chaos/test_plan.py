"""Random rounds can be replayed: the seed alone determines a round."""

from __future__ import annotations

from tests.chaos.plan import draw


def test_the_same_seed_is_the_same_round() -> None:
    for seed in range(20):
        one, other = draw(seed, nodes=3), draw(seed, nodes=3)
        assert one == other
        faults = [(place, number) for place in range(3) for number in range(200)]
        assert [one.fault(*which) for which in faults] == [other.fault(*which) for which in faults]


def test_rounds_differ_and_have_all_faults() -> None:
    plans = [draw(seed, nodes=3) for seed in range(40)]
    assert len({plan.events for plan in plans}) == 40
    kinds = {event.kind for plan in plans for event in plan.events}
    assert kinds == {"kill", "freeze", "partition", "server freeze", "server kill", "cut", "clock"}
    assert {2, 3, 4, 5} == {len(plan.slots) for plan in plans}
    assert all(plan.ends < 60 for plan in plans)
    hurt = next(plan for plan in plans if plan.hurt > 0.1)
    assert {type(hurt.fault(0, number)).__name__ for number in range(400)} == {"NoneType", "int", "Delay", "Fault"}


def test_a_server_that_cannot_be_hurt_is_not() -> None:
    assert not any(event.kind in ("server kill", "cut") for seed in range(40) for event in draw(seed, nodes=0).events)
