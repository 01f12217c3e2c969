import re

import pytest

from leapray import console


def step(number, epoch=1, loss=0.5):
    return {"event": "step", "epoch": epoch, "step": number, "steps": 1000, "loss": loss, "rows_per_s": 12345.6}


def validation(number, skill, epoch=1):
    return step(number, epoch) | {"event": "validation", "val_loss": 0.25, "score": skill, "skill": skill}


@pytest.fixture
def followed(output, clock):
    """Lines in a log of records that come at given seconds."""

    def lines(records):
        written = output(a_terminal=False)
        with console.training_bar("train", clock) as add:
            for clock.seconds, record in records:
                add(record)
        return written.getvalue().splitlines()

    return lines


def test_a_log_gets_at_most_a_line_in_ten_seconds(followed):
    lines = followed([(second, step(second)) for second in range(1, 61)])
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines] == [10, 20, 30, 40, 50, 60]


def test_every_validation_is_a_line_of_a_log(followed):
    lines = followed([(0.1, step(1)), (0.2, validation(2, 0.5)), (0.3, step(3)), (0.4, validation(4, 0.625))])
    assert len(lines) == 2
    assert lines[0].startswith("train  step 2 of 1,000  epoch 1  loss 0.500  skill 0.500  12,346 rows/s  validation loss 0.250")
    assert "skill 0.625" in lines[1]


def test_a_line_between_validations_has_the_score_of_the_last(followed):
    first, _, later = followed([(10, step(1)), (11, validation(2, 0.5)), (30, step(3))])
    assert "skill" not in first
    assert "skill 0.500" in later
    assert "validation loss" not in later


def test_the_time_left_follows_from_the_steps_since_the_start_or_resumption(followed):
    """From step 400 at 5 s to step 500 at 25 s is a step in 0.2 s; 500 are left."""
    (line,) = followed([(5, step(400)), (25, step(500))])
    assert line.endswith("0:01:40 left")


def test_no_time_is_left_at_the_end_nor_told_before_a_speed_is_known(followed):
    first, last = followed([(10, step(999)), (20, validation(1000, 0.5))])
    assert "left" not in first + last


def test_steps_that_are_done_again_bring_no_nonsense(followed):
    lines = followed([(10, step(500)), (20, step(400))])
    assert "left" not in lines[1]


def test_a_terminal_of_80_columns_shows_every_figure(output):
    written = output(a_terminal=True)
    with console.training_bar("train") as add:
        add(validation(100, 0.5, epoch=12))
        add(step(250, epoch=12, loss=0.125))
    shown = written.getvalue().replace("\r", "\n")
    assert "25%" in shown
    assert "epoch 12  loss 0.125  skill 0.500  12,346 rows/s" in shown


def test_other_bars_show_what_they_are_told_on_a_terminal_and_nothing_in_a_log(output):
    for a_terminal, expected in ((True, "3/4"), (False, "")):
        written = output(a_terminal)
        written.truncate(0)
        with console.bar("convert") as update:
            update(3, 4, note="0001-02")
        assert expected in written.getvalue()
    assert written.getvalue() == ""
