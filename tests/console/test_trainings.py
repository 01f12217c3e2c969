import re
import threading
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leapray.console import trainings_table
from leapray.console.trainings import State


def step(number, epoch=1, loss=0.5, rows_per_s=12345.6):
    return {"event": "step", "epoch": epoch, "step": number, "steps": 1000, "loss": loss, "rows_per_s": rows_per_s}


def validation(number, skill, epoch=1):
    return step(number, epoch) | {"event": "validation", "val_loss": 0.25, "score": skill, "skill": skill, "r2": -8.6e13}


@pytest.fixture
def log(output, clock):
    """Lines in a log of what is called at given seconds: ``(seconds, name, record)`` or ``(seconds, name, state, note)``."""

    def lines(calls, names=("plain", "swa_13")):
        written = output(a_terminal=False)
        clock.seconds = 0
        with trainings_table("variants", names, clock) as table:
            for clock.seconds, name, what, *note in calls:
                (table.state if isinstance(what, str) else table.add)(name, what, *note)
        return written.getvalue().splitlines()

    return lines


@pytest.fixture
def screen(output, clock):
    """The table on a terminal after the same calls, line by line."""

    def lines(calls, names=("plain", "swa_13"), height=25, width=80):
        written = output(a_terminal=True, height=height, width=width)
        clock.seconds = 0
        with trainings_table("variants", names, clock) as table:
            for clock.seconds, name, what, *note in calls:
                (table.state if isinstance(what, str) else table.add)(name, what, *note)
            written.seek(0)
            written.truncate()
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()).replace("\r", "")
        return [line.rstrip() for line in plain.splitlines() if line.strip()]

    return lines


def test_a_log_has_a_line_for_each_validation_and_each_new_state(log):
    assert log(
        [
            (1, "swa_13", step(10)),
            (2, "swa_13", validation(20, 0.4612, epoch=3)),
            (3, "swa_13", step(30)),
            (4, "swa_13", "finished"),
            (5, "swa_13", "finished"),
            (6, "plain", "failed", "loss is\nnot finite"),
        ]
    ) == [
        "swa_13  training",
        "swa_13  epoch 3  skill 0.461  loss 0.500  12,346 rows/s",
        "swa_13  finished",
        "plain  failed: loss is not finite",
    ]


def test_a_log_sums_up_at_most_every_half_minute(log):
    lines = log([(second, "plain", step(second)) for second in range(1, 100)] + [(100, "swa_13", validation(1, 0.25))])
    assert [line for line in lines if ";" in line or "waiting" in line] == [f"1 training, 1 waiting (plain {done}%)" for done in (3, 6, 9)]
    (last,) = log([(0, "a", "kept"), (0, "plain", validation(1, 0.25)), (0, "swa_13", validation(1, 0.5)), (30, "plain", step(2))])[-1:]
    assert last == "2 training, 1 kept; best swa_13, skill 0.500 (plain 0%, swa_13 0%)"


def test_a_training_that_is_over_is_not_called_training_for_a_record_that_comes_late(log, screen):
    calls = [(1, "plain", step(1)), (2, "plain", "stopped"), (3, "plain", validation(2, 0.5))]
    assert log(calls) == ["plain  training", "plain  stopped", "plain  epoch 1  skill 0.500  loss 0.500  12,346 rows/s"]
    assert [line.split()[1] for line in screen(calls) if line.startswith(" plain")] == ["stopped"]


def test_80_columns_hold_every_figure_in_the_order_of_the_names(screen):
    title, header, _, plain, swa, total = screen(
        [
            (0, "swa_13", validation(100, 0.5, epoch=12)),
            (1000, "swa_13", validation(200, 0.25, epoch=13)),
            (2000, "swa_13", step(300, epoch=14, loss=0.125)),
        ]
    )
    assert title == "variants"
    assert header.split() == ["state", "epoch", "done", "skill", "best", "loss", "rows/s", "left"]
    assert plain.split() == ["plain", "waiting"]
    # 200 steps took 2000 s, 700 are left
    assert swa.split() == ["swa_13", "training", "14", "30%", "0.250", "0.500", "0.125", "12,346", "1:56:40"]
    assert total == " 1 training, 1 waiting; best swa_13, skill 0.500"


def test_no_line_is_wider_than_the_terminal_however_long_the_names(screen):
    name = "a-variant-with-a-name-as-long-as-a-sentence"
    far = {"epoch": 100, "steps": 10**6, "rows_per_s": 1234567.8, "score": -12.3456, "skill": -12.3456}
    lines = screen([(0, name, validation(1, -0.5)), (99, name, step(2) | far), (100, "other", "failed", "why " * 50)], names=[name])
    assert max(map(len, lines)) <= 80
    # the name keeps some letters, and a narrow terminal leaves out the rows/s
    (line,) = (line for line in lines if "…" in line and "-12.3" in line)
    assert len(line.split()[0]) >= 12
    assert "1,234,568" not in line


def test_a_low_terminal_shows_those_that_train_and_counts_the_rest(screen):
    names = [f"trial_{number}" for number in range(30)]
    calls = [(0, name, "finished") for name in names[:12]] + [(0, name, step(1)) for name in names[12:16]]
    lines = screen(calls, names, height=12)
    assert len(lines) < 12
    assert [line.split()[0] for line in lines if "training " in line and "trial" in line] == names[12:16]
    assert " and 24 more: 12 waiting, 12 finished" in lines
    assert lines[-1] == " 4 training, 14 waiting, 12 finished"


def test_the_last_notes_stand_below_the_table_until_the_state_changes(screen):
    calls = [(0, name, "failed", f"cause of {name}\n[in two lines]") for name in "abcd"]
    assert [line for line in screen(calls) if "cause" in line] == [f" {name} failed: cause of {name} [in two lines]" for name in "bcd"]
    assert [line for line in screen([*calls, (1, "c", "training")]) if "cause of c" in line] == []


def test_the_time_left_follows_the_steps_since_a_restart(screen):
    calls = [(0, "plain", step(500)), (10, "plain", step(600)), (100, "plain", step(400)), (140, "plain", step(500))]
    (line,) = (line for line in screen(calls) if line.startswith(" plain"))
    # from step 400 at 100 s, 100 steps took 40 s, and 500 are left
    assert line.split()[-1] == "0:03:20"
    (line,) = (line for line in screen(calls[:3]) if line.startswith(" plain"))
    assert ":" not in line


VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=5)
RECORDS = st.dictionaries(st.sampled_from(["event", "epoch", "step", "steps", "loss", "rows_per_s", "score", "skill", "val_loss"]), VALUES)
CALLS = st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["plain", "other"]), RECORDS | st.sampled_from(get_args(State))), max_size=6)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(calls=CALLS)
def test_no_record_is_too_strange(log, screen, calls):
    log(calls)
    screen(calls)


def test_trainings_are_fed_from_many_threads(output, clock):
    written = output(a_terminal=False)
    with trainings_table("variants", [], clock) as table:

        def feed(name):
            for number in range(1, 101):
                table.add(name, validation(number, number / 200))

        threads = [threading.Thread(target=feed, args=(f"trial_{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = written.getvalue().splitlines()
    assert len(lines) == 8 * 101
    assert all(re.fullmatch(r"trial_\d  (training|epoch 1  skill 0(\.\d+)?  loss 0\.500  12,346 rows/s)", line) for line in lines)


@pytest.mark.parametrize("width", [80, 60])
def test_eight_long_names_can_be_told_apart(screen, width):
    names = [f"a_variant_of_the_base_with_seed_{seed}_and_more_words" for seed in range(8)]
    lines = screen([(0, name, validation(1, 0.25)) for name in names], names=names, width=width)
    assert max(map(len, lines)) <= width
    shown = [line.split()[0] for line in lines if line.startswith(" a_")]
    assert len(set(shown)) == 8
    assert min(map(len, shown)) >= 12
