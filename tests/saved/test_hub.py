"""What is sent to the hub, over HTTP to a server here that answers as the hub does; what is refused before training."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from lrlora import InputError
from lrlora.saved.hub import check_push, files_to_send, push
from lrlora.training import train
from tests.cli.commands import match, quick
from tests.cli.commands import run as command
from tests.training.test_run import config_for


class Hub(BaseHTTPRequestHandler):
    """The calls of huggingface_hub for a new repository and a commit of small files."""

    role = "write"
    calls: list[tuple[str, dict]]
    files: dict[str, bytes]

    def do_GET(self) -> None:
        if self.headers["authorization"] != "Bearer hf_mine":
            return self._answer({"error": "Invalid user token."}, 401)
        if self.path == "/api/whoami-v2":
            return self._answer({"name": "me", "auth": {"accessToken": {"role": type(self).role}}})
        return self._answer({"error": "not there"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        where = f"http://{self.headers['host']}/me/mine"
        if self.path == "/api/repos/create":
            if json.loads(body)["organization"] == "you":
                return self._answer({"error": "You are not in this organization."}, 403)
            self.calls.append(("create", json.loads(body)))
            return self._answer({"url": where, "name": "me/mine", "id": "1"})
        if self.path == "/api/models/me/mine/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._answer({"files": modes})
        if self.path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                {"commitUrl": f"{where}/commit/abc", "commitOid": "abc", "hookOutput": "", "success": True}
            )
        return self._answer({}, 200 if self.path == "/api/validate-yaml" else 404)

    def _answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(monkeypatch):
    """A hub at this machine, with a token for it."""
    Hub.calls, Hub.files, Hub.role = [], {}, "write"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in (("HF_HUB_OFFLINE", False), ("ENDPOINT", address)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def finished(tiny_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    rows = [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": n % 2} for n in range(20)]
    (folder / "days.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(config_for(tiny_encoder, folder / "days.jsonl", folder / "run", max_steps=1))
    return folder / "run"


def test_the_files_arrive_as_they_are(hub, finished):
    lines: list[str] = []
    adapter = finished / "adapter"
    (adapter / "notes.txt").write_text("mine")
    (adapter / ".hidden").write_text("mine")
    try:
        check_push("me/mine")
        url = push(adapter, "me/mine", False, lines.append)
    finally:
        (adapter / "notes.txt").unlink()
        (adapter / ".hidden").unlink()
    assert url is not None and url.endswith("/me/mine")
    assert hub.files == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert {"README.md", "ranks.png", "adapter_model.safetensors"} < set(hub.files)
    (created,) = hub.calls
    assert (created[1]["name"], created[1]["organization"], created[1]["visibility"]) == ("mine", "me", "private")
    assert "a folder of this machine: that path is sent" in lines[0] and "adapter_config.json, " in lines[1]


@pytest.mark.parametrize("verb", ["train", "merge", "export"])
def test_every_verb_sends_its_own_folder_and_nothing_else(hub, finished, tiny_encoder, tmp_path, capsys, verb):
    out = finished if verb == "train" else tmp_path / "out"
    words = [verb, str(finished), "--out", str(out)]
    if verb == "train":
        words = ["train", "--config", str(finished), "--out", str(out)]
    status, _, err = command(capsys, *words, "--push_to_hub", "me/mine", "--public")
    assert status == 0, err
    sent = out / "adapter" if verb == "train" else out
    assert hub.files == {name: (sent / name).read_bytes() for name in files_to_send(sent)}
    assert not [name for name in hub.files if "checkpoint" in name or "/" in name]
    assert ("SHA256SUMS" in hub.files) == (verb != "train")
    assert hub.calls[0][1]["visibility"] == "public"


def test_what_cannot_be_sent_is_refused_before_training(hub, tiny_encoder, sentences, tmp_path, capsys, monkeypatch):
    def refused(*more: str) -> str:
        status, _, err = command(capsys, *quick(tiny_encoder, sentences, tmp_path / "run", *more))
        assert status == 2 and not (tmp_path / "run").exists()
        return err

    match("takes NAME or OWNER/NAME, got 'a/b/c'", refused("--push_to_hub", "a/b/c"))
    match("--public is of --push_to_hub REPO", refused("--public"))
    hub.role = "read"
    match("the token of me may only read; make one that may write", refused("--push_to_hub", "mine"))
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    match("cannot push to the hub: .*tries again", refused("--push_to_hub", "mine"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    match("there is none; run `hf auth login`, or set HF_TOKEN", refused("--push_to_hub", "mine"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    match("HF_HUB_OFFLINE is set; unset it", refused("--push_to_hub", "mine"))
    assert hub.calls == []


def test_a_hub_that_refuses_leaves_the_folder(hub, finished):
    with pytest.raises(InputError, match=r"adapter is written, but not sent to the hub: .*403.*tries again"):
        push(finished / "adapter", "you/other", False, lambda line: None)
    assert (finished / "adapter" / "README.md").exists()
