"""Kills at every place, and what is said about answers that do not survive them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterator

import pytest

import baton
from baton import GenerationRequest, Yielded
from baton.testing import DoesNotSurvive, survives, survives_sync

WORDS = ["one ", "two ", "three "]
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "search", "arguments_delta": "{}"}


@baton.continues
async def saving(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield {"type": "continue", "after": request.state_seq}
    for number in range(request.state or 0, 3):
        yield WORDS[number]
        yield {"type": "state", "state": number + 1}


@baton.continues
def repeating(_request: GenerationRequest) -> Iterator[Yielded]:
    yield {"type": "continue", "after": 0}
    yield from WORDS


async def restarting(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    for word in WORDS:
        yield word


async def test_an_answer_that_continues_survives() -> None:
    found = await survives(saving)
    # Before the first event, after each event, and after each state but the one of the end.
    assert (found.kills, found.resets, found.repeated_tools) == (7, 0, 0)
    assert found.undisturbed.text == "one two three "
    assert [trial.place for trial in found.trials[:3]] == [
        "Before the first event",
        "After event 1",
        "After event 1 and the state saved there",
    ]


def test_an_answer_that_repeats_itself_survives() -> None:
    assert survives_sync(repeating).resets == 0


async def test_an_unmarked_generator_may_start_over() -> None:
    assert (await survives(restarting)).resets == 3
    with pytest.raises(DoesNotSurvive, match=r"starts over \(worker_lost\)"):
        await survives(restarting, may_reset=False)


async def test_an_answer_that_says_something_twice_does_not_survive() -> None:
    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        yield "one "
        yield "two "

    with pytest.raises(DoesNotSurvive) as raised:
        await survives(generate)
    assert str(raised.value).startswith(
        "The answer does not survive the death of its worker at 2 of 3 places.\n"
        "After event 1:\n"
        "  Viewers have other text:\n"
        "    undisturbed: 'one two '\n"
        "    continued:   'one one two '\n"
    )
    assert "→ The answer has something twice" in str(raised.value)


async def test_an_answer_that_repeats_itself_differently_does_not_survive() -> None:
    numbers = itertools.count()

    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": 0}
        yield {"type": "usage", "input_tokens": next(numbers)}
        yield "answer"

    with pytest.raises(DoesNotSurvive, match="does not repeat itself exactly"):
        await survives(generate)


async def test_a_tool_outside_of_a_step_runs_twice() -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield CALL
        yield {"type": "tool_result", "id": "c", "result": 1}
        yield "done"

    with pytest.raises(DoesNotSurvive, match=r"(?s)at 2 of 4 places.*search ran twice.*request\.step"):
        await survives(generate)
    assert (await survives(generate, may_repeat_tools=True)).repeated_tools == 2


async def test_a_tool_in_a_step_runs_once() -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield CALL
        yield {"type": "tool_result", "id": "c", "result": await request.step("search", lambda: {"found": 1})}
        yield "done"

    found = await survives(generate)
    assert (found.repeated_tools, found.resets) == (0, 3)


async def test_an_end_that_differs_does_not_survive() -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        if request.run > 1:
            raise baton.GenerationError("busy", "Busy.")

    with pytest.raises(DoesNotSurvive, match="ends as failed busy, not as completed stop"):
        await survives(generate)


async def test_an_answer_that_fails_by_itself_is_not_judged() -> None:
    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield "a"
        raise ValueError("boom")

    with pytest.raises(DoesNotSurvive, match=r"Without any kill .* failed generator_error: ValueError\('boom'\)"):
        await survives(generate)


async def test_answers_that_differ_by_themselves_are_not_judged() -> None:
    numbers = itertools.count()

    async def generate(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield str(next(numbers))

    with pytest.raises(DoesNotSurvive, match="a model with fixed answers"):
        await survives(generate)


async def test_a_generator_that_waits_for_ever_is_not_judged() -> None:
    @baton.continues
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield {"type": "continue", "after": request.so_far.seq}
        yield {"type": "wait", "for": None, "until": 1}

    with pytest.raises(DoesNotSurvive, match="waits again after each deadline"):
        await survives(generate)


async def test_replies_and_deadlines_come_in_every_trial() -> None:
    async def generate(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        yield f"{await request.receive()} "
        yield f"{await request.receive(60)}"

    assert (await survives(generate, inputs=["Bo"])).undisturbed.text == "Bo None"
    with pytest.raises(DoesNotSurvive, match="one more in `inputs`"):
        await survives(generate)
