"""How often ranks meet."""

import pytest

from leapray.training import pace


def test_ranks_meet_every_half_minute_however_long_an_epoch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now)
    meeting = pace.Pace(report_seconds=1.0, checkpoint_seconds=60.0)
    longest = 0.0
    while now < 8 * 3600:
        taken = meeting.steps * 0.1
        now += taken
        meeting.took(meeting.steps)
        longest = max(longest, taken)
    assert longest == pytest.approx(30.0, abs=0.2)
