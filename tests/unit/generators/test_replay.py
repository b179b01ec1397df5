from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from tests.unit.generators.generation import Heard, hear, request

from baton.events import encode_event
from baton.generators import SoFar
from baton.generators.replay import DEFAULT_TRANSCRIPT, ReplayGenerator, Transcript, load_transcripts
from baton.settings import Settings

TRANSCRIPTS = load_transcripts()


@pytest.fixture(params=list(TRANSCRIPTS.values()), ids=list(TRANSCRIPTS))
def transcript(request: pytest.FixtureRequest) -> Transcript:
    assert isinstance(request.param, Transcript)
    return request.param


@pytest.fixture
def replay() -> ReplayGenerator:
    return ReplayGenerator(Settings.load(replay_speed=1000))


def heard_of(transcript: Transcript) -> Heard:
    heard = Heard()
    for _, event in transcript.events:
        heard.add(event)
    return heard


def test_a_transcript_has_every_kind_of_event(transcript: Transcript) -> None:
    heard = heard_of(transcript)
    kinds = [event["type"] for event in heard.events]
    assert set(kinds) == {"reasoning", "tool_call", "tool_result", "text", "usage", "finish"}
    assert kinds[0] == "reasoning"
    assert kinds[-2:] == ["usage", "finish"]
    assert heard.finish_reason == "stop"
    for event in heard.events[:-1]:
        encode_event(event)


def test_a_transcripts_ids_and_counts_agree(transcript: Transcript) -> None:
    heard = heard_of(transcript)
    assert [call_id for call_id, _, _ in heard.calls] == [event["id"] for event in heard.of("tool_result")]
    assert all(arguments.startswith("{") for _, _, arguments in heard.calls)
    usage = heard.usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["reasoning_tokens"] == len(heard.of("reasoning"))
    assert usage["output_tokens"] >= len(heard.of("text")) + len(heard.of("reasoning"))


def test_a_transcript_shows_every_kind_of_text(transcript: Transcript) -> None:
    text = heard_of(transcript).text
    assert "**" in text
    assert any(ord(char) > 0xFFFF or 0x2600 <= ord(char) < 0x2800 for char in text), "an emoji"
    assert any(0x370 <= ord(char) < 0x2000 or 0x3000 <= ord(char) < 0xD7B0 for char in text), "another script"


def test_a_transcripts_timing_looks_like_a_models(transcript: Transcript) -> None:
    heard, due = heard_of(transcript), [seconds for seconds, _ in transcript.events]
    assert due == sorted(due)
    assert 0.2 <= due[0] <= 0.9
    text_due = [seconds for seconds, event in transcript.events if event["type"] == "text"]
    assert 35 <= len(heard.of("text")) / (text_due[-1] - text_due[0]) <= 85


def test_there_are_short_and_long_transcripts() -> None:
    lengths = [transcript.duration_seconds for transcript in TRANSCRIPTS.values()]
    assert len(lengths) >= 3
    assert min(lengths) < 7
    assert 12 <= TRANSCRIPTS[DEFAULT_TRANSCRIPT].duration_seconds == max(lengths) <= 15
    assert len(TRANSCRIPTS[DEFAULT_TRANSCRIPT].events) >= 500


async def test_replay_plays_a_whole_transcript(replay: ReplayGenerator, transcript: Transcript) -> None:
    heard = await hear(replay, {"transcript": transcript.name})
    assert heard.events == [event for _, event in transcript.events]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("weather", "weather"),
        (" claim\n", "claim"),
        ({"transcript": "claim"}, "claim"),
        ("Will there be RAIN?", "weather"),
        ("Show me the code!", "claim"),
        ([{"role": "user", "content": "rain?"}, {"role": "user", "content": "And SQL?"}], "claim"),
        ({"messages": [{"content": "The forecast, please"}]}, "weather"),
        ([{"role": "user", "content": "rain?"}, {"role": "user", "content": "Thanks."}], DEFAULT_TRANSCRIPT),
        (
            {
                "messages": [
                    {"role": "user", "parts": [{"type": "text", "text": "SQL?"}]},
                    {"role": "user", "parts": [{"type": "text", "text": "And the rain?"}]},
                    {"role": "assistant", "parts": [{"type": "text", "text": "As SQL would say."}]},
                ]
            },
            "weather",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "rain?"}]}], "user": "sql"}, "weather"),
        ("Say something.", DEFAULT_TRANSCRIPT),
        ("", DEFAULT_TRANSCRIPT),
        (None, DEFAULT_TRANSCRIPT),
        ({"speed": 2}, DEFAULT_TRANSCRIPT),
    ],
)
def test_the_input_chooses_the_transcript(replay: ReplayGenerator, given: Any, name: str) -> None:
    assert replay.choose(given).name == name


@pytest.mark.parametrize("name", ["nonsense", 3])
async def test_an_unknown_transcript(replay: ReplayGenerator, name: Any) -> None:
    heard = await hear(replay, {"transcript": name})
    assert heard.code == "invalid_input"
    assert str(heard.error) == f"There is no transcript {name!r}."
    assert heard.error is not None
    assert heard.error.operator == "there are claim, outlive, weather"


@pytest.mark.parametrize("speed", [0, -1, 1001, True, "fast", float("nan")])
async def test_an_invalid_speed_is_refused(replay: ReplayGenerator, speed: Any) -> None:
    heard = await hear(replay, {"speed": speed})
    assert str(heard.error) == f"The speed must be a number from 0.01 to 1000, not {speed!r}."


async def test_consumer_delays_do_not_add_up() -> None:
    """Events that became due during a delay are yielded at once."""
    seconds = 0.0

    async def sleep(pause: float) -> None:
        nonlocal seconds
        seconds += pause

    replay = ReplayGenerator(Settings.load(), clock=lambda: seconds, sleep=sleep)
    due = [due_seconds / 2 for due_seconds, _ in TRANSCRIPTS["weather"].events]
    running = replay(request({"transcript": "weather", "speed": 2}))
    await anext(running)
    delayed_until = seconds = due[-1] / 2
    assert [seconds async for _ in running] == pytest.approx([max(delayed_until, item) for item in due[1:]])


async def test_replay_can_be_cancelled_at_any_time(replay: ReplayGenerator) -> None:
    running = replay(request({"speed": 1}))
    task = asyncio.ensure_future(anext(running))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_later_run_repeats_without_pauses_and_plays_the_rest() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    replay = ReplayGenerator(Settings.load(), clock=lambda: 100.0, sleep=sleep)
    whole = [event async for event in replay(request({"transcript": "outlive"}))]
    slept.clear()
    said = "".join(item for item in whole[:40] if isinstance(item, str))
    thought = "".join(item["delta"] for item in whole[:40] if isinstance(item, dict) and item["type"] == "reasoning")
    later = dataclasses.replace(request({"transcript": "outlive"}), run=2, so_far=SoFar(40, said, thought), state_seq=0)
    again = [event async for event in replay(later)]
    assert again == [{"type": "continue", "after": 0}, *whole]
    assert len(slept) == len(whole) - 40
    assert slept[0] == 0
