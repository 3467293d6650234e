"""The server that forks a sweep's runs on each machine."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import EXPERIMENTS
from sweeping import TOY, run_folders, sweep, wait_for

from slth.experiments.sweeps import client, cluster, conduct
from slth.experiments.sweeps.client import Server, ServerLost, execute


@pytest.fixture
def server(tmp_path):
    """A server of the small experiment, which ends with the test."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    server = Server(f"test{os.getpid()}", str(path), 1)
    with server.connect() as stay:
        stay.sendall(b'{"do": "stay"}\n')
        yield server
    wait_for(lambda: not server.path.exists(), seconds=20)


def planned(server, points):
    return server.ask({"do": "plan", "cwd": os.getcwd(), "named": [], "points": points})[0]


def test_the_server_plans_and_refuses(server):
    answer = planned(server, [{"hidden": 4}, {"hidden": 8}, {"hidden": 8, "seed": 0}])
    assert [run["changed"] for run in answer["runs"]] == [{}, {"hidden": 8}]  # the third is the second
    assert answer["runs"][1]["config"]["end"] == "well"
    refused = planned(server, [{}, {"hidden": 0}])["refused"]
    assert refused == "run 2 of 2 (hidden=0): hidden=0: must be an int >= 1"
    assert planned(server, [{"hiden": 4}])["refused"].startswith(
        "run 1 of 1 (hiden=4): hiden=4: unknown key, did you mean hidden?"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_server_that_has_imported_torch_has_no_threads():
    server = Server(f"torch{os.getpid()}", str(EXPERIMENTS / "approx_error.py"), 1)
    with server.connect() as stay:
        stay.sendall(b'{"do": "stay"}\n')
        assert len(planned(server, [{}])["runs"]) == 1  # it has imported all by now
        commands = {path.parent: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
        (process,) = [place for place, command in commands.items() if server.token.encode() in command]
        assert "torch" in (process / "maps").read_text()
        assert len(list((process / "task").iterdir())) == 1
    wait_for(lambda: not server.path.exists(), seconds=20)


def test_a_server_that_ends_leaves_the_socket_of_the_next(server):
    server.forget(inode=server.path.stat().st_ino + 1)
    assert server.path.exists()


@pytest.fixture
def short(monkeypatch):
    """A folder of temporary files with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: folder)
        yield Path(folder)


def test_a_socket_lies_in_a_short_folder(short, monkeypatch):
    assert client.own_folder().parent == short
    for name in ("a" * 60, "ü"):
        other = short / name
        other.mkdir()
        monkeypatch.setattr(tempfile, "gettempdir", lambda other=other: str(other))
        monkeypatch.setattr(client, "FALLBACKS", ("/nowhere", str(short)))
        assert client.own_folder().parent == short
        assert len(str(Server("0" * 12, "toy.py", 1).path)) < client.SOCKET_BYTES
        monkeypatch.setattr(client, "FALLBACKS", ("/nowhere",))
        with pytest.raises(OSError, match=f"TMPDIR={other}: must be a folder of at most [0-9]+ ASCII letters"):
            client.own_folder()


def test_rays_sockets_lie_in_a_short_folder_where_the_user_chose_none(short, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert cluster._sessions() == str(short / "ray")
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    assert cluster._sessions() is None


@pytest.mark.parametrize("given", ["relative", "/nowhere/at/all"])
def test_a_sweep_names_its_temporary_folder_in_full(given, tmp_path, monkeypatch):
    (tmp_path / "relative").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", given)
    monkeypatch.setattr(tempfile, "tempdir", None)
    conduct._settle_temporary()
    assert os.path.isdir(os.environ["TMPDIR"])
    assert os.path.isabs(os.environ["TMPDIR"])
    assert (os.environ["TMPDIR"] == str(tmp_path / "relative")) == (given == "relative")


def test_a_sweep_with_a_long_temporary_folder(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    done = sweep(tmp_path, "workers=1", "folder=out")
    assert done.returncode == 0, done.stderr
    assert len(run_folders(tmp_path / "out")) == 1


def test_a_folder_of_sockets_that_others_may_enter_is_refused(short):
    (short / f"slth-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ServerLost, match="is no folder of this user alone"):
        Server("refused", "toy.py", 1).connect()


def test_a_run_is_forked_from_the_server_and_ends_with_the_connection_that_asked_for_it(server, tmp_path):
    place, notes = tmp_path / "place", tmp_path / "notes"
    place.mkdir()
    notes.mkdir()
    run = {"id": "a", "updates": {"wait": 60, "notes": str(notes)}, "place": str(place)}
    version = planned(server, [{}])["version"]
    request = {"do": "run", "cwd": str(tmp_path), "named": [], "version": version, "environment": {}, "sql": None}
    request |= run | {"shared": str(tmp_path / "shared")}
    request["environment"] = {"CUDA_VISIBLE_DEVICES": ""}
    with server.connect() as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        wait_for(lambda: list(notes.iterdir()))
        pid = int(next(notes.iterdir()).name.split("-")[-1])
        os.kill(pid, 0)
        if sys.platform == "linux":
            parent = Path(f"/proc/{pid}/stat").read_text().split()[3]
            assert Path(f"/proc/{parent}/cmdline").read_text().split("\0")[2].endswith("server.py")
    wait_for(lambda: not alive(pid), seconds=20)
    assert json.loads((place / "a" / "run.json").read_text())["status"] == "RUNNING"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_other_code_on_a_node_is_no_failure_of_the_run(server, tmp_path):
    outcome = execute(server, {"do": "run", "version": "other", "place": str(tmp_path)})
    assert outcome["lost"].startswith(f"{socket.gethostname()} has other code: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "toy.py"]


def test_a_node_that_does_not_see_the_folder_says_so(server, tmp_path):
    version = planned(server, [{}])["version"]
    outcome = execute(server, {"do": "run", "version": version, "place": str(tmp_path / "elsewhere")})
    assert outcome["status"] == 1
    assert f"No such file or directory: '{tmp_path / 'elsewhere' / 'log.txt'}'" in outcome["lost"]
    assert socket.gethostname() in outcome["lost"]


def test_a_script_that_cannot_be_imported_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("from slth.experiments import lab\nraise RuntimeError('no such thing')\n")
    server = Server(f"broken{os.getpid()}", str(path), 1)
    with pytest.raises(ServerLost, match="RuntimeError: no such thing"):
        server.ask({"do": "plan"})
    server.forget()
