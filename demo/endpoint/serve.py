"""Serve a saved model as an Inference Endpoint does, with the standard library's HTTP server, to try it or to test it.

    python demo/endpoint/serve.py --model weights/handunet-base --port 8080
    python -c "from huggingface_hub import InferenceClient as C; print(C('http://127.0.0.1:8080').object_detection('photo.jpg'))"

This runs `handler.py` of the model's folder, or the one beside this file if the folder has none.  Weights without their
code, as in `weights/`, run with this checkout's package.  The server listens on 127.0.0.1 only.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = "weights/handunet-base"
MAX_BODY_BYTES = 64 * 1024**2
TIMEOUT_SECONDS = 30  # for a client to send the bytes that it announced


def load_handler(model: Path):
    """The `EndpointHandler` for the model in the folder `model`."""
    if not (model / "modeling_handunet.py").is_file():
        sys.path.insert(0, str(ROOT))
        importlib.import_module("modeling_handunet")  # registers the model, so that the folder needs no code
    here = Path(__file__).resolve().parent / "handler.py"
    source = model / "handler.py" if (model / "handler.py").is_file() else here
    spec = importlib.util.spec_from_file_location("handler", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(model))


class EndpointServer(ThreadingHTTPServer):
    """Answers POST on any path with `handler`'s answer to the body.  Port 0 takes a free port (`server_port`)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler, port: int = 0):
        self.handler = handler
        super().__init__(("127.0.0.1", port), _Request)

    def handle_error(self, request, client_address):
        """Log nothing if the client has closed the connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS
    server: EndpointServer

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self._answer(200, {"status": "ok"})

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self._refuse(411, "Send a Content-Length.")
        if int(length) > MAX_BODY_BYTES:
            self._discard(min(int(length), 4 * MAX_BODY_BYTES))
            return self._refuse(413, f"The request has {length} bytes: send at most {MAX_BODY_BYTES}.")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            return self._refuse(400, f"The request ended after {len(data)} of {length} bytes.")
        if self.headers.get_content_type() == "application/json":
            try:
                data = json.loads(data)
            except (ValueError, RecursionError) as error:
                return self._answer(400, {"error": f"The request is not JSON: {error}"})
        try:
            self._answer(200, self.server.handler(data))
        except ConnectionError:
            raise
        except Exception as error:
            status = getattr(error, "status", 500)
            if status == 500:
                traceback.print_exc()
            self._answer(status, {"error": str(error)})

    def _discard(self, length: int) -> None:
        """Read and drop `length` bytes, because many clients read the answer only after they have sent everything."""
        while length > 0 and (read := len(self.rfile.read(min(length, 2**20)))):
            length -= read

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer and close the connection, because its next bytes may still belong to this request."""
        self.close_connection = True
        self._answer(status, {"error": sentence})

    def _answer(self, status: int, content) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = f"a saved or pulled folder (default: {DEFAULT_MODEL})"
    parser.add_argument("--model", type=Path, default=ROOT / DEFAULT_MODEL, help=help)
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        parser.error(
            f"there is no model in {args.model}: name a saved folder with --model, or make one with `accelerate launch "
            "train.py`, which is then outputs/handunet/model"
        )
    try:
        server = EndpointServer(load_handler(args.model), args.port)
    except (OSError, ValueError) as error:
        sys.exit(f"serve.py: {error}")
    print(f"Listening on http://127.0.0.1:{server.server_port}, Ctrl-C stops it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
