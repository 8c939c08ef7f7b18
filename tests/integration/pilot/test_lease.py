"""The lease of a pilot, and what it does when it loses it or one of its tokens."""

from __future__ import annotations

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, GATE, Pool, Proxy, Submission, left_behind, until


def test_progress_is_in_the_lease(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    submission.start("echo '{\"step\": 3}' > $PICAS_PROGRESS_FILE; sleep 30", lease=3)
    until(
        lambda: [lease.get("running", {}).get("b:0000", {}).get("progress") for lease in pool.leases()] == [{"step": 3}]
    )


def test_drain(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 4)
    process = submission.start(f"{COUNT}; {GATE}", lease=12)
    until(lambda: submission.runs().total() == 1)
    assert pool.request("PUT", "_local/picas-submission-sub-1", {"drain": True})[0] == 201
    until(lambda: "drained" in submission.log())
    submission.open_gate()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 1, State.TODO: 3}


def test_a_pilot_whose_token_was_taken_stops_work_on_it(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(COUNT + "; sleep 60", lease=3)
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    pool.put({**doc, "claim": "other-1", "pilot": "other", "lock": doc["lock"] + 1})
    until(lambda: "was taken by another pilot" in submission.log())
    until(lambda: not [line for line in left_behind(submission) if "sleep" in line])
    assert pool.get("b:0000")["claim"] == "other-1"
    process.terminate()
    assert process.wait(20) == 0
    assert pool.get("b:0000")["claim"] == "other-1"


def test_a_lost_lease_stops_the_work(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, submission: Submission
) -> None:
    pool.push([{}])
    write = 'date +%s.%N >> "$RUNS.times"'
    cut_off = behind_proxy.start(f'{COUNT}; until [ -e "$RUNS.go" ]; do {write}; sleep 0.05; done', lease=4)
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    (lease,) = pool.leases()  # it lasts longer for others: a lease this short has no room for a slow machine
    assert pool.request("PUT", lease["_id"], {**lease, "renewed": lease["renewed"] + 4})[0] == 201
    other = submission.start(f"{write}; sleep 0.5; echo 2 > output.json", lease=4, wait_for_work=20)
    until(lambda: "has expired. Stopping b:0000" in behind_proxy.log())
    until(lambda: state_of(pool.get("b:0000")) is State.DONE)
    first, second = ((made.folder / "runs.times").read_text().split() for made in (behind_proxy, submission))
    assert float(first[-1]) < float(second[0]), "the other pilot ran the token while the first one still did"
    proxy.fault = lambda request: ""
    until(lambda: "is refused" in behind_proxy.log())
    assert pool.get("b:0000")["output"] == 2
    for process in (cut_off, other):
        process.terminate()
        assert process.wait(20) == 0
