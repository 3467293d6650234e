"""Tickets as folders and repositories of the Hugging Face hub, which a server of this test stands in for."""

import base64
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from regression import net, wrapped
from tables import one_case

import slth

huggingface_hub = pytest.importorskip("huggingface_hub", reason='huggingface_hub is not installed: "slth[hub]"')

NAMES = {"README.md", "config.json", "ticket.safetensors"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one upload and one download ask for; `server.files` holds what was committed."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"{self.server.url}/me/tiny", "name": "me/tiny"})
        elif "/preupload/" in self.path:
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/me/tiny/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        data = self.server.files.get(self.path.partition("/resolve/main/")[2])
        if data is None:
            return self.answer({"sha": "a" * 40, "siblings": []})
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit="a" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.url = {}, [], f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants, file_download, hf_api

    for module in (constants, file_download, hf_api):
        for name, old in list(vars(module).items()):
            if isinstance(old, str) and old.startswith("https://huggingface.co"):
                monkeypatch.setattr(module, name, old.replace("https://huggingface.co", server.url))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    huggingface_hub.close_session()


def same(one, other):
    return one.to_bytes() == other.to_bytes()


def test_a_folder_gives_the_ticket_back_and_says_what_it_is(tmp_path):
    model = wrapped(keep=0.4)
    ticket = slth.Ticket.of(model)
    folder = ticket.save_pretrained(tmp_path / "deep" / "tiny", method="edge_popup", losses={"val_loss": 1.25})
    assert {*os.listdir(folder)} == NAMES
    found = slth.Ticket.from_pretrained(folder)
    assert same(found, ticket)
    assert same(slth.Ticket.from_pretrained(str(folder)), ticket)
    x = torch.ones(2, 16)
    assert torch.equal(found.apply(net())(x), model.eval()(x))
    config = json.loads((folder / "config.json").read_text())
    assert config["bytes"] == (folder / "ticket.safetensors").stat().st_size
    assert (config["method"], config["losses"], config["digest"]) == ("edge_popup", {"val_loss": 1.25}, ticket.digest)
    assert config["keep"] == config["kept"] / config["entries"] == pytest.approx(0.4, abs=1e-3)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: slth\n")
    assert "| val_loss | 1.25 |" in card
    assert "slth.Ticket.from_pretrained('tiny')" in card
    assert huggingface_hub.ModelCard(card).data.library_name == "slth"


def test_a_ticket_over_a_base_says_so_in_its_card(tmp_path):
    folder = slth.Ticket.of(slth.wrap(net(), keep=0.4)).save_pretrained(tmp_path / "base")
    assert "the very network that was pruned" in (folder / "README.md").read_text()


def test_what_is_pushed_is_what_is_loaded(hub, tmp_path):
    ticket = slth.Ticket.of(wrapped())
    address = ticket.push_to_hub("me/tiny", method="edge_popup", losses={"loss": 0.5}, private=True, token="hf_x")
    assert address == f"{hub.url}/me/tiny"
    assert {*hub.files} == NAMES
    assert {token for _, token in hub.asked} == {"Bearer hf_x"}
    assert "slth.Ticket.from_pretrained('me/tiny')" in hub.files["README.md"].decode()
    found = slth.Ticket.from_pretrained("me/tiny", cache_dir=tmp_path, token=False)
    assert same(found, ticket)


@one_case
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": 3}, "method=3: must be a line of text or None"),
        ({"method": "a\nb"}, "method='a"),
        ({"losses": {"a": float("nan")}}, "losses: 'a' is nan, must be finite numbers by name"),
        ({"losses": {1: 1.0}}, "losses: 1 is 1.0"),
    ],
)
def test_others_are_refused_before_a_file(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        slth.Ticket.of(wrapped()).save_pretrained(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_ticket_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ticket\.safetensors"):
        slth.Ticket.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_no_repository():
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder, and not the name of a repository"):
        slth.Ticket.from_pretrained("nowhere")
