"""The simulation of many pilots: it loses no token, repeats itself, and its database has limits."""

from __future__ import annotations

from benchmarks.simulation import Costs, Setting, Simulation

COSTS = Costs(
    lease=0.004, flag=0.003, row=(0.004, 0.0003), page=(0.004, 0.0002), write=(0.004, 0.0003), index=(0.012, 0.001),
    count=0.003, locked=0.0003, leases=0.00003, process=0.0021,
)  # fmt: skip


def test_all_tokens_are_done_once() -> None:
    simulation = Simulation(Setting(pilots=7, tokens=500, seconds=1.0, until=10_000), COSTS)
    found = simulation.run()
    assert found.done == 500
    assert (simulation.waiting_tokens, simulation.locked) == (0, 0)


def test_pilots_without_work_end_while_one_is_busy() -> None:
    found = Simulation(Setting(pilots=5, tokens=1, seconds=1_000.0, until=10_000), COSTS).run()
    assert found.done == 1
    assert found.spent["heads"] < 5 * 200 * COSTS.row[0]  # they do not search for all of these seconds


def test_the_same_seed_gives_the_same_run() -> None:
    setting = Setting(pilots=5, tokens=300, seconds=0.1)
    assert Simulation(setting, COSTS, seed=3).run() == Simulation(setting, COSTS, seed=3).run()
    assert Simulation(setting, COSTS, seed=3).run() != Simulation(setting, COSTS, seed=4).run()


def test_the_database_is_the_limit_of_many_pilots() -> None:
    few = Simulation(Setting(pilots=2, tokens=20_000, seconds=2.5, until=60), COSTS).run()
    many = Simulation(Setting(pilots=500, tokens=20_000, seconds=2.5, until=60), COSTS).run()
    assert few.busy < 0.1 * 2 * few.at
    assert 1.5 * many.at < many.busy < 2.2 * many.at  # of 2 cores; the pilots start within the minute
    assert many.done < 0.8 * 500 / 2 * 60 / 2.5
