"""Which requests are steps of an agent, told by their texts alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.agent_loop import digest_of, is_agent_step, said_last
from semcache.types import Turn


def user(text: str | None) -> Turn:
    return Turn("user", text)


def assistant(text: str | None) -> Turn:
    return Turn("assistant", text)


@pytest.mark.parametrize(
    "question",
    [
        "Observation: 3 files were found",
        "OBSERVATION:\ntotal 12\ndrwxr-xr-x  2 root",
        "[read_file for 'src/main.py'] Result:\n1 | import sys",
        "Tool output: 42",
        "Tool result:\n{}",
        "<tool_response>\n{}\n</tool_response>",
        "<function_results>none</function_results>",
        "<returncode>0</returncode>\n<output>ok</output>",
        "## Command output:\nok",
        "Question: how old is she?\nThought: look\nAction: search\nAction Input: age\nObservation: 54\nThought:",
    ],
)
def test_the_output_of_a_tool_is_a_step_of_an_agent(question: str) -> None:
    assert is_agent_step(question, ())


@pytest.mark.parametrize(
    "said",
    [
        "Thought: I need the list.\nAction: list_files\nAction Input: src",
        'I will look.\n<tool_call>{"name": "look"}</tool_call>',
        "<execute_bash>ls</execute_bash>",
        "<function=run>ls</function>",
        "```tool_code\nprint(1)\n```",
    ],
)
def test_what_follows_a_call_in_the_text_is_a_step_of_an_agent(said: str) -> None:
    assert is_agent_step("main.py  util.py", [user("What is in src?"), assistant(said)])


def test_the_same_words_again_and_again_only_drive_an_agent_on() -> None:
    turns = [user("Fix the tests."), assistant("One is fixed.")]
    for step in range(3):
        assert is_agent_step("Go on with the next one.", turns) == (step >= 2)
        turns += [user("Go on with the next one."), assistant(f"{step} more.")]


@pytest.mark.parametrize(
    "question",
    [
        "What is an observation in statistics?",
        "How do I read the output of this tool?",
        "Which tool results in fewer errors?",
        "What does exit code 137 mean?",
        "My observations are: the lamp blinks twice, then stops. What is wrong?",
        "Action films of the nineties, please",
        "[1, 2, 3] as a set in Python?",
    ],
)
def test_a_question_about_tools_is_a_question(question: str) -> None:
    assert not is_agent_step(question, [user("Hello"), assistant("Hello! What can I do for you?")])


def test_a_question_asked_twice_is_a_question() -> None:
    assert not is_agent_step("What does it cost?", [user("What does it cost?"), assistant("Ten euros.")])


@given(st.text(max_size=300), st.lists(st.builds(Turn, st.just("assistant"), st.none() | st.text(max_size=200))))
def test_any_conversation_is_judged(question: str, turns: list[Turn]) -> None:
    assert is_agent_step(question, turns) in (True, False)


def test_what_was_said_last_is_the_assistants() -> None:
    assert said_last([]) is None
    assert said_last([assistant("a"), user("b"), assistant("c"), user("d")]) == "c"
    assert said_last([assistant("a"), assistant(None)]) is None


def test_white_space_at_the_ends_makes_no_other_answer() -> None:
    assert digest_of("one two\n") == digest_of(" one two") != digest_of("one too")
