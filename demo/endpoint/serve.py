"""Serve a saved model as an Inference Endpoint does, to try it, to test it, or behind a proxy of your own.

    python demo/endpoint/serve.py --model weights/handunet-base --port 8080
    python -c "from huggingface_hub import InferenceClient as C; print(C('http://127.0.0.1:8080').object_detection('photo.jpg'))"

This runs `handler.py` of the model's folder, or the one beside this file if the folder has none.  Weights without their
code, as in `weights/`, run with this checkout's package.  The server listens on 127.0.0.1 only.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import socket
import sys
import time
import traceback
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "demo"))

from serving import RequestError, clean  # noqa: E402

DEFAULT_MODEL = "weights/handunet-base"
MAX_BODY_BYTES = 64 * 1024**2
MAX_HELD_BYTES = 4 * MAX_BODY_BYTES  # of all bodies that are in memory
MAX_JSON_VALUES = 10_000  # a request with 64 boxes has about 400
MAX_AT_ONCE = 8  # requests that are answered at the same time
MAX_CONNECTIONS = 256
BODY_SECONDS = 20  # for a request to arrive
WAIT_SECONDS = 5  # for a place among those that are answered
CONNECTION_SECONDS = 60  # from a connection's first byte, or its last answer, to the next answer's last byte
RETRY_SECONDS = 2
HEALTH_SECONDS = 5  # for which the answer of a health check is kept


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


def make_app(handler) -> FastAPI:
    """Answers POST on any path with `handler`'s answer to the body, and GET /health with whether that works."""
    app = FastAPI(openapi_url=None)
    places = asyncio.Semaphore(MAX_AT_ONCE)
    held = 0  # bytes of all bodies
    checking = asyncio.Lock()
    checked, health = -float("inf"), None  # time and answer of the last check

    @app.post("/{path:path}")
    async def answer(request: Request) -> JSONResponse:
        nonlocal held
        length = int(request.headers.get("content-length", 0))  # h11 has refused what is no number
        if length > MAX_BODY_BYTES:
            await discard(request)
            return failure(413, f"The request has {length} bytes: send at most {MAX_BODY_BYTES}.")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    held += len(part)
                    if len(body) > MAX_BODY_BYTES:  # of a request that does not say its length
                        return failure(413, f"The request is too long: send at most {MAX_BODY_BYTES} bytes.")
                    if held > MAX_HELD_BYTES:
                        return busy()
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await places.acquire()
            except TimeoutError:
                return busy()
            try:
                return await run_in_threadpool(respond, handler, bytes(body), request.headers.get("content-type", ""))
            finally:
                places.release()
        except TimeoutError:
            return failure(408, f"The request did not arrive within {BODY_SECONDS} s.")
        except ClientDisconnect:
            return failure(400, "The request broke off.")  # nobody reads this
        finally:
            held -= len(body)

    @app.get("/health")
    async def check() -> JSONResponse:
        """Run the model.  Calls within `HEALTH_SECONDS` get the same answer, so that many calls are no work."""
        nonlocal checked, health
        async with checking:
            if time.monotonic() - checked > HEALTH_SECONDS:
                health = await run_in_threadpool(check_health, handler)
                checked = time.monotonic()
            return health

    @app.get("/{path:path}")
    async def greet() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return app


async def discard(request: Request) -> None:
    """Read and drop a body that is too long, because many clients read the answer only after they have sent everything."""
    left = 4 * MAX_BODY_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(BODY_SECONDS):
            if "expect" not in request.headers:  # such a client waits for leave to send
                async for part in request.stream():
                    left -= len(part)
                    if left < 0:
                        break


def respond(handler, body: bytes, content_type: str) -> JSONResponse:
    """The handler's answer to a whole request."""
    try:
        is_json = content_type.partition(";")[0].strip().lower() == "application/json"
        answer = handler(read_json(body) if is_json else body)
        return JSONResponse(answer, headers=None if answer else {"X-Note": "No hand was found in this image."})
    except Exception as error:
        status = getattr(error, "status", 500)
        if status == 500:
            traceback.print_exc()
        return failure(status, "The server failed; its log says why." if status == 500 else str(error))


def read_json(body: bytes):
    """The value of a JSON text that holds few values.  They are counted before they take memory."""
    values = sum(map(body.count, (b"[", b"{", b",")))
    if values > MAX_JSON_VALUES:
        raise RequestError(413, f"The JSON holds about {values} values: send at most {MAX_JSON_VALUES}.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The request is not JSON: {error}") from None


def check_health(handler) -> JSONResponse:
    """Whether the handler's networks answer an image."""
    picture, start = io.BytesIO(), time.monotonic()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    try:
        handler({"inputs": picture.getvalue(), "parameters": {"boxes": "image"}})
        if getattr(handler, "finds_hands", False):
            handler(picture.getvalue())
    except Exception:
        traceback.print_exc()
        return failure(503, "The model cannot answer; the server's log says why.")
    return JSONResponse({"status": "ok", "seconds": round(time.monotonic() - start, 3)})


def failure(status: int, sentence: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"error": clean(sentence)}, status, headers)


def busy() -> JSONResponse:
    return failure(503, f"The server is busy: try again in {RETRY_SECONDS} s.")


class Connection(H11Protocol):
    """A connection that ends when a request takes too long as a whole: its headers, its body, or reading its answer."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.end = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def on_response_complete(self) -> None:
        self.end.cancel()
        self.end = self.loop.call_later(CONNECTION_SECONDS, self.transport.abort)
        super().on_response_complete()

    def connection_lost(self, error) -> None:
        self.end.cancel()
        super().connection_lost(error)


def make_server(handler) -> uvicorn.Server:
    """Its `run(sockets=[...])` serves until Ctrl-C."""
    config = uvicorn.Config(make_app(handler), http=Connection, ws="none", log_level="warning", access_log=False)
    return uvicorn.Server(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = f"a saved or pulled folder (default: {DEFAULT_MODEL})"
    parser.add_argument("--model", type=Path, default=ROOT / DEFAULT_MODEL, help=help)
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        parser.error(
            f"there is no model in {args.model}: name a saved folder with --model, or make one with `accelerate launch "
            "train.py`, which is then outputs/handunet/model"
        )
    try:
        listener = socket.create_server(("127.0.0.1", args.port))
        server = make_server(load_handler(args.model))
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(f"serve.py: {error}")
    print(f"Listening on http://127.0.0.1:{listener.getsockname()[1]}, Ctrl-C stops it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
