"""What a person at a terminal sees, and what a log file gets."""

import json
import sys
from pathlib import Path

import pytest

from training.progress import Reporter, counting


def test_a_terminal_gets_one_live_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")  # as terminals are; nothing is cut off
    with Reporter(tmp_path, "controlnet-[canny]", 0, 20) as reporter:
        for step in range(1, 21):
            reporter.step(step)
            if step % 10 == 0:
                figures = {"memory_gib": 12.34, "gap": 0.123456, "gap_shuffled": 0.2, "fidelity": 0.7777}
                reporter.record(step, {"loss": 0.5, "kept": 0.25, "lr": 1e-4, **figures}, 160)
        reporter.say("[odd] text")
    with counting("caching [text]", 3) as progress:
        progress(3, 3)
    said = " ".join(capsys.readouterr().out.split())  # long lines are wrapped
    shown = ("loss 0.5000 lr 1.00e-04", "steps/s", "samples/s", "kept 0.25", "memory_gib 12.34", "gap 0.1235", "fidelity 0.7777")
    for part in ("controlnet-[canny]", "20/20", "left", "0:00:0", *shown, "[odd] text", "caching [text]", "3/3"):
        assert part in said, part


def test_the_shown_loss_is_smoothed_over_steps(tmp_path: Path) -> None:
    with Reporter(tmp_path, "toy", 0, 200) as reporter:
        reporter.record(100, {"loss": 1.0, "lr": 1e-4}, 100)
        reporter.record(150, {"loss": 0.0, "lr": 1e-4}, 50)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1.0, 0.0]
    assert rows[1]["loss_smooth"] == pytest.approx(0.98**50, rel=1e-4)


def test_other_processes_are_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(tmp_path, "toy", 0, 2, quiet=True) as reporter, counting("caching", 2, quiet=True) as progress:
        reporter.step(1)
        reporter.record(1, {"loss": 1.0, "lr": 1.0}, 1)
        reporter.say("something")
        progress(2, 2)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.jsonl").exists()
