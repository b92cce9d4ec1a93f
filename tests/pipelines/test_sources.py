"""Where models come from: what is refused, what is damaged, what is installed, and fetching from a hub."""

import hashlib
import json
import pickle
import random
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cli
from core.errors import BadModel, LimnError
from pipelines import catalogue
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import from_hub, models_folder, resolve
from pipelines.place import Place
from tests import original, tinymodels

CPU = Place(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet in its folder, with `net.safetensors` in the original layout beside it."""
    folder = tmp_path_factory.mktemp("sources")
    tinymodels.build_base(folder / "base")
    net = tinymodels.build_controlnet(folder / "net", folder / "base")
    original.write(folder / "net.safetensors", net, parts={"": lambda part: original.unet(part, "control_model.")})
    return net


@pytest.fixture
def limn_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Path) -> Path:
    """Limn's own folder with one base and one single-file ControlNet in it."""
    folder = tmp_path / "models"
    shutil.copytree(net.parent / "base", folder / "mine" / "base")
    shutil.copy(net.with_suffix(".safetensors"), folder / "edges.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, folder / "bold.safetensors")
    monkeypatch.setenv("LIMN_MODELS", str(folder))
    return folder


class Canary:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_pickles_are_refused_whatever_they_are_called(tmp_path: Path, suffix: str, protocol: int | str) -> None:
    file, canary = tmp_path / f"model{suffix}", tmp_path / "canary"
    data = pickle.dumps(Canary(canary), protocol=protocol if isinstance(protocol, int) else 2)
    file.write_bytes(data)
    if protocol == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    with pytest.raises(BadModel, match=r"pickle.*reading one can run any code: use the model's safetensors version, or convert it"):
        open_checkpoint(resolve(str(file)))
    assert not canary.exists()


def test_a_header_that_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """safetensors begin with their header's length, which may be 0x0280."""
    header = json.dumps({"lora_up": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).ljust(0x0280).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadModel, match="is a LoRA"):
        open_checkpoint(tmp_path / "x.safetensors")


def mutated(whole: bytes, draw: random.Random, begin: int, end: int) -> bytes:
    """Bytes with up to four changes between two places: a byte changed, some cut out or put in, a digit changed."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(begin, min(end, len(data)))
        match draw.randrange(4):
            case 0:
                data[place] = draw.randrange(256)
            case 1:
                del data[place : place + draw.randint(1, 40)]
            case 2:
                data[place:place] = draw.randbytes(draw.randint(1, 8))
            case 3:
                digit = next((k for k in range(place, min(place + 200, end)) if chr(data[k]).isdigit()), place)
                data[digit] = ord(str(draw.randrange(10)))
    return bytes(data)


def test_mutated_files_are_bad_models_or_whole(net: Path, tmp_path: Path) -> None:
    """500 damaged files: read, or refused with the file's name and the cause in one line."""
    from diffusers import ControlNetModel

    whole = net.with_suffix(".safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw, said = random.Random(0), []
    for i in range(500):
        file = tmp_path / "mutant.safetensors"
        file.write_bytes(mutated(whole, draw, 0, header if i % 5 else len(whole)))
        try:
            checkpoint = open_checkpoint(file)
            checkpoint.config("")
            if i % 25 == 0:
                checkpoint.network(ControlNetModel, "", CPU)
        except BadModel as error:
            said.append(str(error))
    assert len(said) > 350
    assert all("mutant" in sentence and "\n" not in sentence for sentence in said)


def test_names_and_revisions(limn_models: Path, net: Path) -> None:
    assert resolve("mine/base") == limn_models / "mine" / "base"
    assert resolve("edges") == limn_models / "edges.safetensors"
    assert models_folder() == limn_models
    with pytest.raises(BadModel, match=r"hub model 'some/model@v2' cannot be fetched"):
        resolve("some/model@v2")
    with pytest.raises(BadModel, match=r"hub model 'some/model@v2' is not installed: run 'limn models add some/model@v2'"):
        resolve("some/model@v2", fetch=False)
    with pytest.raises(BadModel, match=r"no model '\.\./secrets'"):
        resolve("../secrets")


def test_models_are_listed(limn_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    told = {name: (row["kind"], row["family"], row["source"]) for name, row in found.items()}
    assert told["toyland"] == ("model", "sd", "embedded")
    assert told["toyland/controlnet-canny"] == ("controlnet", "sd", "embedded")
    assert told["mine/base"] == ("model", "sd", "folder")
    assert told["edges"] == ("controlnet", "sd", "folder")
    assert told["bold"] == ("lora", "", "folder")
    assert all(resolve(name) == Path(row["path"]) for name, row in found.items() if row["kind"] in ("model", "controlnet"))
    file = found["edges"]["files"][0]
    assert file["sha256"] == hashlib.sha256((limn_models / "edges.safetensors").read_bytes()).hexdigest()
    assert found["mine/base"]["bytes"] == sum(path.stat().st_size for path in (limn_models / "mine").rglob("*.safetensors"))


def test_the_table_does_not_wrap(limn_models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(limn_models / "edges.safetensors", limn_models / f"{'a-rather-long-name-' * 4}.safetensors")
    assert cli.run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "edges" in line)
    assert row.split()[:3] == ["edges", "controlnet", "sd"]
    assert len(row.split()[-1]) == 12


def test_check_notices_other_bytes_and_missing_ones(limn_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "check", "edges"]) == 0
    assert capsys.readouterr().out == "edges: whole\n"
    file = limn_models / "edges.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (limn_models / "back").symlink_to(limn_models)
    for _ in range(2):  # a list in between hides nothing
        assert cli.run(["models", "check", "edges"]) == 2
        assert "edges.safetensors is damaged: its SHA-256 is" in capsys.readouterr().out
        assert cli.run(["models", "list"]) == 0
        assert "back" not in capsys.readouterr().out
    file.write_bytes(data[:-1])
    assert cli.run(["models", "check", "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert "damaged or cut short" in problems["edges"][0]
    assert problems["bold"] == []
    shutil.rmtree(limn_models / "mine" / "base" / "vae")
    assert cli.run(["models", "check", "mine/base"]) == 2
    assert "it has no 'vae': fetch it again" in capsys.readouterr().out
    assert cli.run(["models", "check", "edgs"]) == 2
    assert "did you mean 'edges'?" in capsys.readouterr().err
    for mangled in ("[]", json.dumps({str(file): 5}), json.dumps({str(file): {"sha256": "0"}})):
        (limn_models / "hashes.json").write_text(mangled)
        assert cli.run(["models", "list"]) == 0


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download needs, over a folder: what a model holds, and its files."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())
        if path in ("/api/models/tiny/net", "/api/models/tiny/net/revision/main", f"/api/models/tiny/net/revision/{self.commit}"):
            entries = [{"rfilename": name} for name in files]
            return self._answer(json.dumps({"id": "tiny/net", "sha": self.commit, "siblings": entries, "private": False}).encode(), {})
        if path == f"/api/models/tiny/net/tree/{self.commit}":
            rows = [{"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40} for name in files]
            return self._answer(json.dumps(rows).encode(), {})
        name = path.rpartition(f"/tiny/net/resolve/{self.commit}/")[2]
        if name in files:
            data = (self.folder / name).read_bytes()
            large = name.endswith(".safetensors")
            etag = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
            return self._answer(data, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit})
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine, and the folder that it serves."""
    from huggingface_hub import constants

    folder = tmp_path / "served"
    shutil.copytree(net, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"folder": folder}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "limn"))
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_pinned_and_checked(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned = f"tiny/net@{Hub.commit}"
    assert cli.run(["models", "add", pinned, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["family"], row["source"]) == ("controlnet", "sd", "hub")
    assert resolve(pinned, fetch=False) == Path(row["path"])
    assert cli.run(["models", "check", pinned]) == 0
    assert capsys.readouterr().out == f"{pinned}: whole\n"
    blob = next(path for path in (tmp_path / "cache").rglob("blobs/*") if len(path.name) == 64)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert cli.run(["models", "check", pinned]) == 2
    assert "is damaged: its SHA-256 is" in capsys.readouterr().out


def test_a_model_of_pickles_is_not_fetched(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hub / "diffusion_pytorch_model.safetensors").rename(hub / "diffusion_pytorch_model.bin")
    assert cli.run(["models", "add", "tiny/net"]) == 2
    assert "has weights only as diffusion_pytorch_model.bin, a pickle" in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_offline_is_said_in_one_line() -> None:
    with pytest.raises(BadModel, match="cannot be fetched: HF_HUB_OFFLINE is set, so nothing is downloaded"):
        catalogue.add("somebody/something")
    with pytest.raises(LimnError):
        from_hub("not a name at all")


def test_a_network_that_is_not_there(hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody answers at this address, as when a machine is not connected and nobody has said so."""
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert cli.run(["models", "add", "somebody/something"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith("try again later, or give a diffusers folder")
    assert "the hub cannot be reached" in said


def test_names_that_the_hub_has_not(limn_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "add", "something"]) == 2
    assert (
        f"'something' is no name of a hub model: write OWNER/NAME, or copy a model of your own into '{limn_models}'"
        in capsys.readouterr().err
    )


def test_list_is_what_models_alone_shows(limn_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for command in (["models"], ["models", "list"]):
        assert cli.run(command) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
