"""The line against arithmetic by hand; and on a real server."""

import os
import random
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import openai
import pytest
from conftest import STUB

from cdm_serve.api import admission as admission_module
from cdm_serve.api.admission import CROWD, Admission, Pace, PictureCost, longest_end
from cdm_serve.api.errors import ApiError

# In full batches a step costs 0.1 and a decoding 0.2; alone they cost 0.4 and 0.25.
COSTS = {
    "text": {"alone": 0.5, "1": 0.5},
    "64x64": {
        "step": {"alone": 0.4, "1": 0.4, "4": 0.4, "8": 1.6},
        "decode": {"alone": 0.25, "1": 0.25, "2": 0.4},
        "batch": 4,
    },
}


def cost(steps=3, partials=0):
    return PictureCost.of(COSTS, "64x64", steps, partials)


COST = cost()  # 1 s among others


def refusal(admission, cost=COST, pictures=1, allowed=None):
    with pytest.raises(ApiError) as caught:
        admission.admit(cost, pictures, allowed)
    return caught.value


def test_the_cost_of_a_picture():
    assert cost(3).shared == pytest.approx(0.5 + 3 * 0.1 + 0.2)
    assert cost(8, 2).shared == pytest.approx(0.5 + 8 * 0.1 + 3 * 0.2)
    assert cost(3, 1).alone == pytest.approx(0.5 + 3 * 0.4 + 2 * 0.25)


def test_the_tiny_decoder_makes_previews_and_pictures_that_ask_for_it():
    tiny = {"tiny_decode": {"alone": 0.05, "1": 0.05, "2": 0.08}}
    costs = COSTS | {"64x64": COSTS["64x64"] | tiny}
    full, quick = (PictureCost.of(costs, "64x64", 3, 2, each) for each in ("full", "tiny"))
    assert full.shared == pytest.approx(0.5 + 3 * 0.1 + 2 * 0.04 + 0.2)
    assert quick.alone == pytest.approx(0.5 + 3 * 0.4 + 3 * 0.05)


def test_the_cost_of_a_size_that_was_not_made_yet():
    assert PictureCost.of(COSTS, "128x64", 3, 0).shared == pytest.approx(0.5 + 2 * (3 * 0.1 + 0.2))


def test_what_a_deadline_does_not_stop():
    assert longest_end(COSTS, "64x64") == pytest.approx(1.6 + 0.4)


def test_work_is_bounded_and_not_requests():
    for each, pictures, seconds, count in [
        (COST, 1, 1.0, 10),
        (cost(8, 2), 1, 1.9, 5),
        (COST, 3, 3.0, 3),
    ]:
        admission = Admission(queue_seconds=10.1)
        for _ in range(count):
            admission.admit(each, pictures, None)
        assert admission.wait == pytest.approx(count * seconds)
        assert refusal(admission, each, pictures).status == 429


def test_a_ticket_knows_its_place():
    admission = Admission(queue_seconds=100.0)
    first, second, third = (admission.admit(COST, 2, None) for _ in range(3))
    assert [ticket.ahead for ticket in (first, second, third)] == [0, 2, 4]
    first.picture_done()
    assert [ticket.ahead for ticket in (first, second, third)] == [0, 1, 3]
    second.close()  # gives up both of its own
    assert [ticket.ahead for ticket in (first, third)] == [0, 1]
    first.picture_done()
    assert third.ahead == 0


def test_the_refusal_says_when_there_is_room():
    admission = Admission(queue_seconds=2.5)
    tickets = [admission.admit(COST, 1, None) for _ in range(2)]
    error = refusal(admission)
    assert error.headers == {"retry-after-ms": "500", "retry-after": "1"}
    assert error.code == "queue_full"
    tickets[0].picture_done()
    admission.admit(COST, 1, None)


def test_not_everyone_is_told_to_come_at_once():
    admission = Admission(queue_seconds=2.5)
    admission.admit(COST, 2, None)
    times = [int(refusal(admission).headers["retry-after-ms"]) for _ in range(6)]
    # Room for one is there after 0.5 s, and each takes 1 s; no promise is a line longer than that.
    assert times == pytest.approx([500, 1500, 2500, 3000, 3000, 3000], abs=20)


def test_a_request_larger_than_the_line_is_taken_when_nobody_waits():
    admission = Admission(queue_seconds=2.5)
    with admission.admit(COST, 4, None):
        assert refusal(admission).code == "queue_full"
    admission.admit(COST, 4, None)


def test_leaving_gives_up_what_was_not_made():
    admission = Admission(queue_seconds=100.0)
    with admission.admit(COST, 3, None) as ticket:
        assert admission.wait == pytest.approx(3.0)
        ticket.picture_done()
        assert admission.wait == pytest.approx(2.0)
        ticket.close()
    assert (admission.wait, admission.pictures) == (0.0, 0)


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    admission = Admission(queue_seconds=10.0)
    # Alone it takes 0.5 + 3 * 0.4 + 0.25 = 1.95 s.
    short = refusal(admission, allowed=1.9)
    assert (short.status, short.code) == (408, "deadline_too_short")
    admission.admit(COST, 1, allowed=2.0)
    late = refusal(admission, allowed=2.0)  # 1 s of work is before it
    assert (late.status, late.code) == (429, "deadline_cannot_be_met")
    assert int(late.headers["retry-after-ms"]) in (950, 951)
    admission.admit(COST, 1, allowed=3.0)


def test_a_slow_machine_makes_the_wait_longer(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(admission_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    pace = Pace()
    assert pace.seconds_per_work == 1.0
    pace.begun()
    for _ in range(40):
        clock.now += 0.02
        pace.finished(0.005)
    assert 2.0 < pace.seconds_per_work <= 4.0
    before = pace.seconds_per_work
    pace.interrupted()
    clock.now += 0.2
    pace.finished(0.005)
    assert pace.seconds_per_work == before


def test_time_without_a_crowd_says_nothing_of_the_pace():
    admission = Admission(queue_seconds=100.0)
    with admission.admit(COST, CROWD + 2, None):
        time.sleep(0.05)
    # All others were given up: what comes later is measured anew.
    with admission.admit(COST, 2, None) as ticket:
        time.sleep(0.05)
        ticket.picture_done()
        time.sleep(0.05)
        ticket.picture_done()
    with admission.admit(COST, 1, None):
        assert admission.wait == pytest.approx(1.0)


def under_overload(monkeypatch, queue, believed, true, batch, slower=1.0):
    """Waits of those taken in, in seconds, and how much of the time the engine was at work.

    Twice as much comes as the engine can make, which takes ``true`` seconds for a picture and gives
    out ``batch`` of them at a time. One second in four it is ``slower`` by that factor.
    """
    draws, clock = random.Random(1), SimpleNamespace(now=0.0)
    monkeypatch.setattr(admission_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    admission, end = Admission(queue), 400 * max(queue, true)
    line, waits, free, busy = deque(), [], 0.0, 0.0

    def make_until(now):
        nonlocal free, busy
        while line:
            begin = max(free, line[0][0])
            together = [each for each in line if each[0] <= begin][:batch]
            factor = slower if random.Random(int(begin)).random() < 0.25 else 1.0
            seconds = factor * true * len(together)
            if begin + seconds > now:
                break
            free = clock.now = begin + seconds
            busy += seconds
            for arrived, ticket in together:
                line.popleft()
                waits.append(free - arrived)
                ticket.picture_done()
        clock.now = now

    while clock.now < end:
        make_until(clock.now + draws.expovariate(2 / true))
        with suppress(ApiError):
            cost = PictureCost(believed, believed)
            line.append((clock.now, admission.admit(cost, 1, None)))
    return sorted(waits), busy / end


@pytest.mark.parametrize("believed", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("queue", "true", "batch"), [(2, 0.05, 8), (10, 5.0, 1), (10, 60.0, 1)])
def test_who_is_taken_in_waits_no_longer_than_was_promised(
    monkeypatch, queue, true, batch, believed
):
    """Also when start-up measured half of what a picture takes, or twice as much."""
    waits, busy = under_overload(monkeypatch, queue, believed * true, true, batch)
    assert waits[int(0.99 * len(waits))] <= 1.2 * queue + true * batch
    # Where a picture is half the line, there is often no room for another one.
    assert busy > (0.9 if true < queue / 10 else 0.7) or true > queue


def test_the_line_is_shorter_where_the_machine_is_slow_now_and_then(monkeypatch):
    """Twice as slow, for seconds at a time; and no time of the engine is lost by it."""
    waits, busy = under_overload(monkeypatch, 2, 0.01, 0.01, 8, slower=2.0)
    assert waits[int(0.99 * len(waits))] <= 1.2 * 2 + 0.01 * 8
    assert busy > 0.98


@pytest.fixture(scope="module")
def narrow(start, server):
    """A gateway that lets next to nothing wait."""
    gateway = start("--triton", server.triton_address(), "--queue-seconds", "0.001")
    gateway.wait_ready()
    yield gateway
    assert gateway.interrupt() == 0


def test_a_crowd_is_answered_or_told_when_to_come_back(narrow):
    def ask(seed):
        return narrow.generate(prompt="a fox", seed=seed, n=4, num_inference_steps=16)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after-ms"]) < 60_000
    shed = narrow.metric("cdm_serve_shed_total", reason="queue_full")
    assert shed == sum(answer.status_code == 429 for answer in answers)
    assert narrow.metric("cdm_serve_pictures_in_flight") == 0


def test_the_openai_client_comes_back_when_it_is_told_to(narrow):
    def ask(seed):
        with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="x", max_retries=20) as client:
            return client.images.generate(prompt="a fox", n=2, extra_body={"seed": seed}).data

    with ThreadPoolExecutor(4) as pool:
        assert [len(data) for data in pool.map(ask, range(8))] == [2] * 8


def test_a_deadline_on_a_real_server(server):
    def ask(milliseconds, **fields):
        return server.http.post(
            "/v1/images/generations",
            json={"prompt": "a fox", **fields},
            headers={"x-request-timeout-ms": milliseconds},
        )

    assert ask("60000").status_code == 200
    short = ask("0.01")
    assert (short.status_code, short.json()["error"]["code"]) == (408, "deadline_too_short")
    assert short.headers["x-should-retry"] == "false"
    wrong = ask("soon")
    assert wrong.json()["error"]["param"] == "x-request-timeout-ms"


def test_a_deadline_that_passes_is_an_answer_all_the_same(server):
    """The model sleeps past it, with the message at hand: from then on the time is counted."""
    (model,) = [pid for pid, name in server.descendants().items() if name == STUB]
    fields = {"prompt": "a fox", "num_inference_steps": 16, "n": 10, "size": "96x64"}
    milliseconds = 300
    with ThreadPoolExecutor(1) as pool:
        for _ in range(40):  # until it falls asleep in the middle of the work
            route, headers = "/v1/images/generations", {"x-request-timeout-ms": str(milliseconds)}
            running = pool.submit(server.http.post, route, json=fields, headers=headers)
            time.sleep(0.02)
            os.kill(model, signal.SIGSTOP)
            time.sleep(milliseconds / 1e3 + 0.05)
            os.kill(model, signal.SIGCONT)
            answer = running.result()
            if answer.status_code == 504:
                break
            if answer.status_code == 408:  # too short for a machine that is so busy
                milliseconds *= 2
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert server.metric("cdm_engine_expired_total", model="tiny") > 0
    server.picture("a fox", 1, 1)
