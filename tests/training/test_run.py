import json
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest
import yaml

from leapray import storage
from leapray.errors import PassingError, UserError
from leapray.models.directory import INFO_FILE
from leapray.recipe import Resources, parse_recipe
from leapray.training.run import RecordLog, Run, following


def recipe(run, **training):
    return parse_recipe(
        {
            "name": "a",
            "data": {
                "prepared": "/data/prepared",
                "sources": {"lr": {"kind": "low-res", "path": "flat", "train": {"start": "0001-02", "stop": "0001-03"}}},
            },
            "network": {"name": "mlp"},
            "training": {"run": str(run), "epochs": 2, "batch_size": 8} | training,
        }
    )


def step(epoch, number):
    return {"event": "step", "epoch": epoch, "step": number}


def end(epoch, number):
    return {"event": "validation", "epoch": epoch, "step": number, "score": 0.5}


def finish(run):
    storage.write_json(f"{run.model}/{INFO_FILE}", {})


def test_a_directory_stays_with_its_recipe(tmp_path):
    ours = recipe(tmp_path / "run")
    run = Run(ours.training.run)
    run.claim(ours)
    finish(run)
    run.claim(ours)
    with pytest.raises(UserError, match=r"another recipe \(training\.epochs: 2, now 3\)"):
        run.claim(recipe(tmp_path / "run", epochs=3))


def test_name_place_and_resources_do_not_change_a_model_but_lanes_do(tmp_path):
    ours = recipe(tmp_path / "run", batch_size=72)
    run = Run(ours.training.run)
    run.claim(ours)
    finish(run)
    elsewhere = ours.model_copy(update={"name": "b", "training": ours.training.model_copy(update={"run": "/elsewhere"})})
    for workers in (1, 2, 4, 8):
        run.claim(elsewhere.model_copy(update={"resources": Resources(workers=workers)}))
    with pytest.raises(UserError, match=r"training\.lanes: 8, now 9"):
        run.claim(ours.model_copy(update={"resources": Resources(workers=3)}))


def test_a_recipe_from_before_a_key_was_known_is_the_same_recipe(tmp_path):
    ours = recipe(tmp_path)
    older = ours.to_dict()
    del older["training"]["patience"], older["data"]["scaling"], older["resources"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(older))
    finish(Run(str(tmp_path)))
    Run(str(tmp_path)).claim(ours)


def test_a_run_that_left_no_checkpoint_may_be_begun_with_a_mended_recipe(tmp_path):
    run = Run(str(tmp_path))
    run.claim(recipe(tmp_path))
    run.claim(recipe(tmp_path, epochs=3))
    assert "epochs: 3" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize("content", ["- just\n- a list\n", "a: [", "name: a\n", ""])
def test_refuses_a_directory_whose_recipe_is_none(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    finish(Run(str(tmp_path)))
    with pytest.raises(UserError, match=r"recipe\.yaml: not the recipe of a run"):
        Run(str(tmp_path)).claim(recipe(tmp_path))


@pytest.fixture
def run(tmp_path):
    """A run whose every record is written at once."""
    run = Run(str(tmp_path))
    run.interval = 0.0
    return run


@pytest.fixture
def look(tmp_path):
    """The same run, as one who follows it: the last look comes when the block ends, and others if it takes longer than this."""
    run = Run(str(tmp_path))
    run.interval = 60.0
    return run


def test_the_log_holds_finished_epochs_and_the_steps_of_the_one_that_runs(run):
    log = RecordLog(run, [])
    assert run.records() == []
    logged = (step(1, 1), step(1, 2), end(1, 2), step(2, 3), end(2, 4), step(3, 5))
    held = (1, 2, 1, 2, 2, 3)
    for record, count in zip(logged, held, strict=True):
        log.add(record)
        assert len(run.records()) == count
        assert run.records()[-1] == record
    assert run.records() == [end(1, 2), end(2, 4), step(3, 5)]


def test_steps_that_follow_too_soon_are_written_with_the_next_ones(run):
    log = RecordLog(run, [])
    run.interval = 60.0
    log.add(step(1, 1))
    log.add(step(1, 2))
    assert run.records() == [step(1, 1)]
    run.interval = 0.0
    log.add(end(1, 3))
    log.add(step(2, 4))
    assert run.records() == [end(1, 3), step(2, 4)]


def test_steps_that_cannot_be_written_now_are_written_with_what_follows(run, monkeypatch):
    log = RecordLog(run, [])
    write, away = storage.write_bytes, PassingError("s3://bucket/metrics.jsonl: still fails after 6 attempts (503)")

    def refuse(*_):
        raise away

    monkeypatch.setattr(storage, "write_bytes", refuse)
    log.add(step(1, 1))
    with pytest.raises(PassingError):
        log.add(end(1, 2))
    monkeypatch.setattr(storage, "write_bytes", write)
    log.add(step(2, 3))
    assert run.records() == [end(1, 2), step(2, 3)]


def test_a_resumed_log_forgets_what_happens_again(run):
    log = RecordLog(run, [])
    for record in (end(1, 2), end(2, 4), end(3, 6), step(4, 7)):
        log.add(record)
    RecordLog(run, [end(1, 2), end(2, 4)])
    assert run.records() == [end(1, 2), end(2, 4)]


def test_an_epoch_that_was_checkpointed_but_not_logged_is_not_missing(run):
    RecordLog(run, []).add(end(1, 2))
    RecordLog(run, [end(1, 2), end(2, 4)]).add(step(3, 5))
    assert run.records() == [end(1, 2), end(2, 4), step(3, 5)]


def test_progress_gets_what_is_logged_from_now_on_in_order(run, look):
    RecordLog(run, []).add(end(1, 2))
    seen = []
    with following(look, seen.append):
        log = RecordLog(run, [end(1, 2)])
        for record in (step(2, 3), end(2, 4), end(3, 6), step(4, 7), step(4, 8)):
            log.add(record)
    assert seen == [end(2, 4), end(3, 6), step(4, 7), step(4, 8)]


def test_progress_of_a_run_resumed_inside_an_epoch_begins_with_its_first_step(run, look):
    log = RecordLog(run, [])
    for record in (end(1, 100), step(2, 180)):
        log.add(record)
    seen = []
    with following(look, seen.append):
        RecordLog(run, [end(1, 100)]).add(step(2, 105))
    assert seen == [step(2, 105)]


def test_a_log_that_cannot_be_read_for_a_while_is_followed_further(run, look, monkeypatch):
    look.interval = 0.001
    failures, seen, arrived = [OSError("timed out"), OSError("timed out")], [], Event()

    def lines(self, lines=Run.lines):
        if failures and current_thread() is not main_thread():
            raise failures.pop()
        return lines(self)

    monkeypatch.setattr(Run, "lines", lines)
    with following(look, lambda record: (seen.append(record), arrived.set())):
        RecordLog(run, []).add(end(1, 2))
        assert arrived.wait(10)
    assert seen == [end(1, 2)]
    assert failures == []


def test_a_log_that_cannot_be_read_at_all_fails_nothing(run, look, monkeypatch):
    with following(look, pytest.fail):
        monkeypatch.setattr(Run, "lines", lambda self: (_ for _ in ()).throw(OSError("gone")))
        RecordLog(run, []).add(end(1, 2))


def test_a_failing_progress_is_heard(run, look):
    with pytest.raises(ZeroDivisionError), following(look, lambda record: 1 / 0):
        RecordLog(run, []).add(end(1, 2))


def test_refuses_a_directory_of_other_things(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("Chapter 1")
    with pytest.raises(UserError, match=r"holds other things than a run; choose an empty training\.run"):
        Run(str(tmp_path / "run")).check(recipe(str(tmp_path / "run")))
    (tmp_path / "run" / "thesis.tex").rename(tmp_path / "run" / ".tmp-0123-recipe.yaml")
    Run(str(tmp_path / "run")).check(recipe(str(tmp_path / "run")))


def test_a_damaged_log_is_told(run):
    Path(run.metrics).write_text('{"event": "validation"}\n{"event": "val')
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged, expected a record of json in every line"):
        run.records()


@pytest.mark.parametrize("key", ["sources.low_res.train", "sources.low_res.validation", "statistics"])
def test_a_run_on_other_files_is_refused_and_other_test_months_are_not_its_concern(tmp_path, key):
    ours, run = recipe(tmp_path / "run"), Run(str(tmp_path / "run"))
    ours = ours.model_copy(update={"data": ours.data.model_copy(update={"prepared": str(tmp_path / "prepared")})})
    files = {"sources.low_res.train": "a", "sources.low_res.validation": "b", "sources.low_res.test": "c", "statistics": "d"}
    settings = Path(ours.data.prepared) / "prepare.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"inputs": files}))
    run.claim(ours)
    finish(run)
    settings.write_text(json.dumps({"inputs": files | {"sources.low_res.test": "other"}}))
    run.check(ours)
    settings.write_text(json.dumps({"inputs": files | {key: "other"}}))
    with pytest.raises(UserError, match=rf"was trained on other files, for .* was prepared anew \({key}\); choose another training\.run"):
        run.check(ours)
    # data that is gone is missed by nobody
    settings.unlink()
    run.check(ours)
