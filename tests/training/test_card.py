"""The model card says what was done and gives away no paths of the machine it was done on."""

import json
from pathlib import Path

import yaml

from training.card import write_card


def test_the_card_has_figures_settings_and_pictures_but_no_paths(tmp_path: Path) -> None:
    out, folder = tmp_path / "run", tmp_path / "weights"
    (out / "grids").mkdir(parents=True)
    folder.mkdir()
    for step in (1, 2):
        (out / "grids" / f"step-{step:08d}.png").write_bytes(b"%d" % step)
    rows = [
        {"step": step, "gap": 0.01 * step, "error": 0.001, "gap_shuffled": 0.02, "fidelity": None if step % 2 else 0.5}
        for step in range(20)
    ]
    (out / "monitor.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"base": "/home/someone/base", "data": {"folder": "/home/someone/pairs"}, "train": {"steps": 20}}
    facts = {"base": config["base"], "condition": "canny", "kind": "canny", "pairs": 7, "steps": 20}
    write_card(folder, "controlnet-canny", facts, config, out)
    text = (folder / "README.md").read_text()
    assert "/home" not in text
    assert (folder / "samples.png").read_bytes() == b"2"
    assert "7 pairs for 20 steps" in text
    assert "| 19 | 0.19000 |" in text
    assert text.count("\n| ") <= 9
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["data"]["folder"] == "pairs"
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "diffusers"
    write_card(folder, "controlnet-canny+depth", facts | {"condition": "canny+depth", "kind": "canny+depth"}, config, out)
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["tags"] == ["controlnet", "limn", "canny", "depth"]
    model = "map.png,ready,model=FOLDER"  # its title is no name that anything is found by
    assert f"--control canny={model} --control depth={model} --prompt" in text
    assert "base_model" not in text
    write_card(folder, "x", facts | {"base": "owner/name@main"}, config, out)
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["base_model"] == "owner/name"
    bare = tmp_path / "bare"
    bare.mkdir()
    write_card(bare, "x", facts, config, tmp_path / "nowhere")
    assert "Figures" not in (bare / "README.md").read_text()
