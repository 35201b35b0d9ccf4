"""A real server of OpenAI's chat completions, `transformers serve`, and one before it that is busy at first."""

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

_START_S = 240


@contextlib.contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """The URL of `transformers serve MODEL` while it runs; skips where it cannot."""
    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai, which are not all installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    code = "from transformers.cli.transformers import main; main()"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *words], stdout=file, stderr=file)
    try:
        ends = time.monotonic() + _START_S
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > ends:
                pytest.skip(f"transformers serve does not start: {log.read_text().strip()[-500:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait(60)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def answering(*replies: tuple[int, dict[str, str], str], behind: str | None = None) -> Iterator[tuple[str, list]]:
    """The URL of a server that gives these replies (status, headers, text) in turn, and passes on what comes after.

    The second value gets the headers of every request.
    """
    waiting, seen = list(replies), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(dict(self.headers))
            if waiting:
                status, headers, text = waiting.pop(0)
                answer = text.encode()
            else:
                assert behind is not None
                sent = urllib.request.Request(
                    behind + self.path.removeprefix("/v1"), body, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(sent) as found:
                    status, headers, answer = found.status, {}, found.read()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
