"""A saved model reaches a hub, which a local server plays: all of its files, its code and its card."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PUSH = """
import sys
from llava_stf import load_model
folder, target, with_code = sys.argv[1:]
for part in load_model(folder):
    part.save_pretrained(target, push_to_hub=True, repo_id="me/model", token="hf_x", with_code=with_code == "yes")
"""


class Hub(BaseHTTPRequestHandler):
    """Takes every file as part of a commit's body, as the hub does with small ones."""

    files: dict[str, bytes]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = f"http://{self.headers['Host']}"
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"{here}/me/model"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": name, **modes} for name in names]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = "0" * 40
            self.answer({"success": True, "commitOid": commit, "commitUrl": f"{here}/me/model/commit/{commit}"})
        else:  # the check of a card's metadata
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.files
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("with_code", ["yes", "no"])
def test_everything_saved_is_pushed(with_code, hub, stf_folder, tmp_path):
    endpoint, files = hub
    settings = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", PUSH, str(stf_folder), str(tmp_path / "model"), with_code]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir() if file.is_file()}
    assert files == saved
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert b"# LLaVA-STF" in files["README.md"]
    assert ("modeling_llava_stf.py" in files) == (with_code == "yes")
