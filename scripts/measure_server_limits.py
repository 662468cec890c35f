"""What the worst requests cost a `llava-stf serve`: /health while one is read, and memory for large images.

    python scripts/measure_server_limits.py             # the checkout that PYTHONPATH or the environment names

Linux only: memory is read from /proc.
"""

import base64
import http.client
import io
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from PIL import Image

COMMAND = "import sys; from llava_stf.cli import main; sys.exit(main())"
MESSAGE = b'{"role":"user","content":"hi"}'
START = b'{"max_tokens":3,"messages":[{"role":"user","content":['
END = b'{"type":"text","text":"How many shapes are there?"}]}]}'


class Server:
    """A server of the bundled model on a free port."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", COMMAND, "serve", "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            sys.exit("The server did not start.")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """The status of the reply, once all of it is there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        reply = connection.getresponse()
        reply.read()
        return reply.status

    def memory(self, field: str) -> float:
        """MiB: VmRSS now, VmHWM at most since `forget`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024

    def forget(self) -> float:
        """Begins to count the greatest memory anew; MiB now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory("VmRSS")

    def slowest_health(self, body: bytes) -> tuple[int, float]:
        """Status of a request, and the most seconds that /health took meanwhile."""
        took, done = [], threading.Event()

        def look() -> None:
            while not done.is_set():
                start = time.perf_counter()
                self.ask("GET", "/health")
                took.append(time.perf_counter() - start)

        looking = threading.Thread(target=look)
        looking.start()
        status = self.ask("POST", "/v1/chat/completions", body)
        done.set()
        looking.join()
        return status, max(took)


def main() -> None:
    """Prints a line for each request."""
    server = Server()
    server.ask("POST", "/v1/chat/completions", START + END)
    bodies = {
        "200,000 messages": b'{"messages":[' + b",".join([MESSAGE] * 200_000) + b"]}",
        "1,000,000 messages": b'{"messages":[' + b",".join([MESSAGE] * 1_000_000) + b"]}",
        "a text of 63 MiB": b'{"messages":[{"role":"user","content":"' + b"a" * (63 * 2**20) + b'"}]}',
        "20 million lists": b'{"x":[' + b"[]," * (20 * 2**20) + b"1]}",
    }
    for name, body in bodies.items():
        before = server.forget()
        status, slowest = server.slowest_health(body)
        grown = server.memory("VmHWM") - before
        print(f"{name}: {status}, slowest /health {slowest:.2f} s, memory +{grown:,.0f} MiB", flush=True)
    file = io.BytesIO()
    Image.effect_noise((70, 70), 90).convert("RGB").resize((7000, 7000), Image.Resampling.NEAREST).save(file, "PNG")
    url = b"data:image/png;base64," + base64.b64encode(file.getvalue())
    asked = START + (b'{"type":"image_url","image_url":{"url":"' + url + b'"}},') * 8 + END
    idle = server.forget()
    for clients in (1, 4):
        threads = [
            threading.Thread(target=server.ask, args=("POST", "/v1/chat/completions", asked)) for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        most = server.memory("VmHWM") - idle
        time.sleep(5)
        after = server.memory("VmRSS") - idle
        print(
            f"8 images of 49 megapixels, {clients} clients: +{most:,.0f} MiB, 5 s later +{after:,.0f} MiB", flush=True
        )
    server.process.terminate()


if __name__ == "__main__":
    main()
