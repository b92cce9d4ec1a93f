"""`limn render SOURCE`, `status`, `report` and `verify` on a tiny real model, from files to files."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

import cli
from batch.store import Folder, pictures
from batch.verify import compare, judge, psnr_db
from core.images import decode
from core.provenance import read_record, write_picture
from renderer import Picture, Renderer
from tests import tinymodels, tinymodels_flux

SMALL = ["--size", "64x64", "--steps", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(models: Path) -> list[str]:
    return ["--model", str(models / "base")]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tinymodels.build_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(out: str | Path) -> set[str]:
    return pictures(Folder(Path(out)).names())


def test_a_manifest_is_drawn_once_as_each_row_alone_would_be(
    work: Path, models: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"defaults": {"size": "64x64", "steps": 2}},
        {"prompt": "a red sphere", "seed": 7},
        {"prompt": "a blue cube", "canny": "photo.png,low=80", "seed": 3},
        {"prompt": "a blue cube", "depth": "depth.png,ready,weight=0.5", "count": 2},
    ]
    (work / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model]) == 0
    assert len(names("out")) == 4
    assert "4 pictures" in capsys.readouterr().out
    renderer = Renderer.open(str(models / "base"), device="cpu")
    for name in names("out"):
        record = read_record(work / "out" / name)
        alone = renderer.render(record.request)[record.index]
        assert np.array_equal(np.asarray(alone.image), decode(work / "out" / name)), "bit for bit"

    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["end"]
    assert (lines[0]["there"], lines[0]["done"]) == (4, 0)


def test_bad_rows_end_it_before_anything_is_drawn_unless_skipped(work: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = ['{"prompt": "a"}', '{"prompt": "b", "canny": "missing.png"}', '{"promt": "c"}', '{"sampler": "eular"}', '{"prompt": "a"}']
    (work / "jobs.jsonl").write_text("\n".join(rows))
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 2
    shown = capsys.readouterr().err
    assert "line 2, column 17: control 0 (canny): image 'missing.png' cannot be read" in shown
    assert "line 3, column 2: unknown column 'promt': did you mean 'prompt'?" in shown
    assert "line 4, column 2: unknown sampler 'eular': did you mean 'euler'?" in shown
    assert "line 5 asks for the same picture as line 1: drawn once" in shown
    assert not (work / "out").exists()
    assert cli.run(["render", "jobs.jsonl", "--out", "out", "--skip-bad", *model, *SMALL]) == 0
    assert len(names("out")) == 1


def test_a_folder_with_a_grid(work: Path, model: list[str]) -> None:
    (work / "maps" / "night").mkdir(parents=True)
    for name in ("maps/a.png", "maps/night/b.png"):
        (work / name).write_bytes((work / "photo.png").read_bytes())
    grid = ["--grid", "seed=1..2", "--grid", "control.weight=0.5,1"]
    assert cli.run(["render", "maps", "--control", "canny", "--prompt-from", "name", "--out", "out", *grid, *model, *SMALL]) == 0
    assert sum(name.startswith("night/") for name in names("out")) == 4
    assert len(names("out")) == 8
    assert {read_record(work / "out" / name).request.prompt for name in names("out")} == {"a", "b"}


def test_a_rehearsal_draws_nothing(work: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.csv").write_text("prompt,canny\nx,photo.png\ny,photo.png\n")
    assert cli.run(["render", "jobs.csv", "--out", "out", "--dry-run", "--json", "--grid", "seed=1..3", *model, *SMALL]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["jobs"], values["groups"], values["control_pictures"]) == (6, 1, 1)
    assert values["seconds"] is not None
    assert values["first"][0]["prompt"] == "x"
    assert not (work / "out").exists()


def test_options_that_do_not_go_together(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "maps").mkdir()
    (work / "jobs.jsonl").write_text("{}")
    for arguments, words in (
        (["-p", "x", "--grid", "seed=1"], "goes with a manifest"),
        (["maps", "--prompt", "x"], "with one --control"),
        (["maps", "--control", "canny"], "--prompt-from txt or name"),
        (["-p", "x", "--out", "s3://bucket/run"], "an address goes with a manifest"),
        (["jobs.jsonl", "--control", "canny"], "not with a manifest"),
        (["jobs.txt"], ".jsonl, .csv, .parquet"),
        (["jobs.jsonl", "--out", "s3://bucket/run", "--min-free-gb", "5"], "cannot be known"),
    ):
        assert cli.run(["render", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_what_the_model_cannot_draw_is_found_before_anything_is_drawn(
    work: Path, models: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flux = tinymodels_flux.build_base(work / "flux")
    (work / "text.safetensors").write_text("no weights")
    rows = [
        {"prompt": "x", "width": 64},
        {"prompt": "x", "width": 72, "model": str(flux)},
        {"prompt": "y", "model": "text.safetensors"},
        {"prompt": "x", "scribble": "photo.png"},
        {"prompt": "x", "canny": f"photo.png,model={flux}"},
        {"prompt": "z", "true_cfg_scale": 3},
        {"prompt": "z", "width": 72, "model": str(flux)},
    ]
    (work / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 2
    said = capsys.readouterr().err
    assert "line 2, column 17: width = 72: this model draws in cells of 16 pixels" in said
    assert "6 bad rows" in said
    assert all(f"line {line}" in said for line in range(2, 8))
    assert not (work / "out").exists()


def test_a_typed_model_wins_over_that_of_the_defaults(work: Path, models: Path, model: list[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x"}')
    (work / "defaults.yaml").write_text("model: nothing-of-this-name.safetensors\n")
    assert cli.run(["render", "jobs.jsonl", "--defaults", "defaults.yaml", "--out", "out", *model, *SMALL]) == 0
    assert {read_record(work / "out" / name).request.model for name in names("out")} == {str(models / "base")}
    assert cli.run(["render", "jobs.jsonl", "--defaults", "defaults.yaml", "--out", "out", *SMALL]) == 2


def test_other_numbers_are_other_jobs(work: Path, model: list[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x"}')
    for count, more in ((1, []), (2, ["--dtype", "bfloat16"]), (2, ["--dtype", "bfloat16"]), (2, [])):
        assert cli.run(["render", "jobs.jsonl", "--out", "out", "--device", "cpu", *more, *model, *SMALL]) == 0
        assert len(names("out")) == count
    assert {read_record(work / "out" / name).dtype for name in names("out")} == {"float32", "bfloat16"}


def test_a_textual_inversion_that_changed_is_another_job_where_it_is_named(work: Path, model: list[str]) -> None:
    (work / "embeddings").mkdir()
    (work / "jobs.jsonl").write_text('{"prompt": "a zork on grass"}\n{"prompt": "a cube"}\n')
    for number, count in ((1, 2), (1, 2), (2, 3)):
        vectors = np.random.default_rng(number).standard_normal((2, 32)).astype(np.float32)
        save_file({"emb_params": vectors}, work / "embeddings" / "zork.safetensors")
        assert cli.run(["render", "jobs.jsonl", "--out", "out", "--workers", "0", *model, *SMALL]) == 0
        assert len(names("out")) == count


@pytest.mark.parametrize("more", [["--device", "tpu"], ["--dtype", "float8"], ["--offload", "grup"]])
def test_what_cannot_be_had_is_said_before_anything_is_made(work: Path, model: list[str], more: list[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x"}')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *more, *model, *SMALL]) == 2
    assert not (work / "out").exists()


def test_a_gate_wants_something_to_measure(work: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x"}\n')
    for more in (["--best-of", "2"], ["--min-fidelity", "0.9"]):
        assert cli.run(["render", "jobs.jsonl", "--out", "out", *more, *model, *SMALL]) == 2
        assert "choose by fidelity" in capsys.readouterr().err
    (work / "jobs.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "canny": "photo.png"}\n')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", "--best-of", "2", *model, *SMALL]) == 0
    assert "1 picture without a control to measure" in capsys.readouterr().err


def test_a_gate_loads_what_measures(work: Path, model: list[str]) -> None:
    """As for a single request: a network that is not here fails the job; it does not pass unmeasured."""
    (work / "jobs.jsonl").write_text('{"prompt": "x", "depth": "depth.png,ready,estimator=none-here.onnx"}')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 0
    assert cli.run(["render", "jobs.jsonl", "--out", "gated", "--min-fidelity", "0.99", *model, *SMALL]) == 3
    assert not names("gated")


def test_status_and_report(work: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x", "canny": "photo.png"}')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 0
    (work / "out" / "report.html").unlink()
    capsys.readouterr()
    assert cli.run(["status", "out", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["total"], values["done"], values["left"], values["running"]) == (1, 1, 0, None)
    assert 0.0 <= values["fidelity"] <= 1.0
    assert cli.run(["report", "out", "--rebuild"]) == 0
    assert next(iter(names("out"))) in (work / "out" / "report.html").read_text()
    (work / "empty").mkdir()
    assert cli.run(["status", "empty"]) == 2
    assert "holds no batch" in capsys.readouterr().err


def test_verify_says_equal_and_what_differs(work: Path, models: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x", "canny": "photo.png", "seed": 4}')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 0
    path = work / "out" / next(iter(names("out")))
    record, image_HWC = read_record(path), decode(path)
    (verdict,) = judge([path])
    assert verdict.equal
    assert not verdict.differs

    changed_HWC = image_HWC.copy()
    changed_HWC[0, 0] ^= 255
    write_picture(work / "changed.png", changed_HWC, record)
    (verdict,) = judge([work / "changed.png"])
    assert not verdict.equal
    assert verdict.psnr_db == pytest.approx(psnr_db(changed_HWC, image_HWC))
    assert "the pixels were changed" in verdict.differs[0]

    weight = record.weights[0].model_copy(update={"sha256": "0" * 64})
    older = record.model_copy(
        update={"weights": (weight, *record.weights[1:]), "versions": record.versions | {"torch": "1.0"}, "device": "mps"}
    )
    write_picture(work / "older.png", changed_HWC, older)
    found = compare(work / "older.png", older, Picture(PIL.Image.fromarray(image_HWC), (), (), record))
    text = "; ".join(found.differs)
    assert f"weights: base {weight.file}" in text
    assert "version: torch 1.0, now" in text
    assert "device: mps, now cpu" in text
    capsys.readouterr()
    (work / "none").mkdir()
    assert cli.run(["verify", "none"]) == 2


def test_verify_with_a_model_that_has_moved(work: Path, models: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.jsonl").write_text('{"prompt": "x", "canny": "photo.png", "seed": 4}')
    shutil.copytree(models, work / "before")
    assert cli.run(["render", "jobs.jsonl", "--out", "out", "--model", "before/base", *SMALL]) == 0
    shutil.move(work / "before", work / "after")
    assert cli.run(["verify", "out"]) != 0
    assert cli.run(["verify", "out", "--model", "after/base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["equal"]


def test_workers_are_a_number_or_auto(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "jobs.jsonl").write_text("{}")
    for text in ("many", "-1", "1000", "1.5", "00000000099999"):
        assert cli.run(["render", "jobs.jsonl", "--workers", text]) == 2
        assert "give auto, or a number of processes up to 256" in capsys.readouterr().err


def test_psnr_is_its_closed_form() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr_db(black, grey) == pytest.approx(20 * np.log10(255 / 51))
    assert psnr_db(black, black) is None
    assert psnr_db(black, grey[:2]) is None


def test_verify_goes_on_past_what_is_missing_or_damaged(
    work: Path, models: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, work / "gone")
    (work / "jobs.jsonl").write_text('{"prompt": "x", "model": "gone/base"}\n{"prompt": "y"}\n')
    assert cli.run(["render", "jobs.jsonl", "--out", "out", *model, *SMALL]) == 0
    shutil.rmtree(work / "gone")
    (work / "out" / "limn-000000000000-0.png").write_bytes((work / "out" / min(names("out"))).read_bytes()[:500])
    capsys.readouterr()
    assert cli.run(["verify", "out", "--json"]) == 3
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(value["equal"] for value in found) == [False, False, True]
    assert all(value["error"] for value in found if not value["equal"])
