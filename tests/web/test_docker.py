"""The container's steps, run as they are without a Docker engine; what the Dockerfile promises stands in it."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.web.conftest import ROOT, Site

DOCKER = ROOT / "docker"
TEXT = (ROOT / "Dockerfile").read_text()


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIMN_")}
    command = ["sh", str(DOCKER / script), *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """A Python that says how it was called."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_the_page_is_started_for_the_network_with_a_login(echo: str) -> None:
    refused = run("start.sh", PYTHON=echo)
    assert refused.returncode != 0
    assert "LIMN_AUTH=user:password" in refused.stderr
    started = run("start.sh", "--model", "x", PYTHON=echo, LIMN_AUTH="me:secret")
    assert started.returncode == 0
    assert "secret" not in started.stdout, "a command line is seen by everybody on the machine"
    assert started.stdout.strip() == "-m cli ui --listen --port 7860 --out /data/outputs --data /data/datasets --runs /data/runs --model x"


@pytest.mark.parametrize(("device", "index", "calls"), [("cpu", True, 1), ("cuda", False, 2)])
def test_requirements_are_those_of_the_device(device: str, index: bool, calls: int, echo: str, tmp_path: Path) -> None:
    done = run("install.sh", device, "--dry-run", PYTHON=echo, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == calls
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in lines[0]) is index
    wanted = (tmp_path / "requirements.txt").read_text()
    assert "opencv-python-headless==" in wanted
    assert wanted.replace("-headless", "") == (ROOT / "requirements.txt").read_text().replace("-headless", "")


def test_an_unknown_device_is_refused() -> None:
    refused = run("install.sh", "tpu")
    assert (refused.returncode, refused.stderr) == (2, "device 'tpu': cpu or cuda\n")


def test_everything_that_is_written_lies_in_the_volume(tmp_path: Path) -> None:
    """The container's root cannot be written to; what the page writes without being told where would be lost."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" --hub "$HF_HOME" --models "$LIMN_MODELS"\n')
    python.chmod(0o755)
    started = run("start.sh", PYTHON=str(python), LIMN_AUTH="me:secret", HF_HOME="")
    folders = re.findall(r"--(out|data|runs|hub|models) (\S+)", started.stdout)
    assert [name for name, _ in folders] == ["out", "data", "runs", "hub", "models"]
    assert all(folder.startswith("/data/") for _, folder in folders)


def test_the_steps_fit_the_house() -> None:
    """What is copied, called and installed is there, whichever package it has moved to."""
    module = re.search(r"-m (\w+) ui", (DOCKER / "start.sh").read_text())
    assert module is not None
    assert (ROOT / module[1] / "__main__.py").is_file()
    ignored = (ROOT / ".dockerignore").read_text().split() if (ROOT / ".dockerignore").is_file() else []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert not {name.partition(".")[0] for name in packages} & {line.strip("/") for line in ignored}
    assert "models" not in ignored


def test_health_is_an_answer(site: Site) -> None:
    from docker import health

    assert health.healthy(site.port)
    assert not health.healthy(1)


def test_the_dockerfile_keeps_its_promises() -> None:
    lines = TEXT.splitlines()
    user = lines.index("USER limn")
    assert all(not line.startswith(("RUN", "USER root")) for line in lines[user + 1 :])
    assert "ARG DEVICE=cpu" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert "VOLUME /data" in lines
    for copied in re.findall(r"^COPY ((?:(?!\.{1,2} )\S+ )+)", TEXT, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name
    for script in re.findall(r"docker/\w+\.\w+", TEXT):
        assert (ROOT / script).is_file(), script
    assert shutil.which("sh")
