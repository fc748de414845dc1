# ruff: noqa: INP001  a program of its own, started in its directory
"""A web application that enqueues; its worker runs beside it. ``uvicorn sample_app:app``.

``POST /enqueue`` with ``{"task": "mail", "entity": {...}, "count": 1}`` enqueues. ``GET /status`` shows the queues, and
``GET /metrics`` what this process has counted: operations are counted as enqueued where they are enqueued. It listens
to whoever can reach it, so give it no public address.
"""

from __future__ import annotations

import contextlib
from asyncio import to_thread
from collections.abc import AsyncIterator
from json import JSONDecodeError
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from sample_tasks import build_report, note_result, send_mail
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from queue_system import AsyncQueueManager, InvalidOperationError, QueueError
from queue_system.settings import Settings
from telemetry import configure

TASKS: Final = {"mail": send_mail, "report": build_report}
MAX_COUNT: Final = 1000


class RequestError(Exception):
    """The request asks for something that there is not."""


async def enqueue(request: Request) -> JSONResponse:
    """One operation, or `count` of them in one round trip."""
    try:
        task, entity, count, options = _read(await request.json())
        queue: AsyncQueueManager = request.app.state.queue
        if count == 1:
            results = [await queue.enqueue(entity, task, **options)]
        else:
            entities = [entity | {"number": number} for number in range(count)]
            results = await queue.enqueue_batch(entities, task, **options)
    except (RequestError, InvalidOperationError, JSONDecodeError) as error:
        return JSONResponse({"error": str(error)}, 400)
    except QueueError as error:
        return JSONResponse({"error": str(error)}, 503)
    return JSONResponse({"accepted": len(results), "first": results[0]}, 202)


async def status(request: Request) -> JSONResponse:
    """What `AsyncQueueManager.get_queue_status` says."""
    try:
        return JSONResponse(await request.app.state.queue.get_queue_status())
    except QueueError as error:
        return JSONResponse({"error": str(error)}, 503)


async def metrics(request: Request) -> Response:
    """In a thread: the collectors may ask Redis."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await to_thread(encode, REGISTRY), media_type=content_type)


async def index(_: Request) -> JSONResponse:
    """Where to go; the health check asks for it."""
    return JSONResponse({"endpoints": ["POST /enqueue", "GET /status", "GET /metrics"], "tasks": sorted(TASKS)})


def _read(body: Any) -> tuple[Any, dict[str, Any], int, dict[str, Any]]:
    if not isinstance(body, dict):
        raise RequestError('send a JSON object such as {"task": "mail"}')
    task, entity, count = TASKS.get(str(body.get("task", "mail"))), body.get("entity", {}), body.get("count", 1)
    if task is None:
        raise RequestError(f"no such task; there are {', '.join(sorted(TASKS))}")
    if not isinstance(entity, dict):
        raise RequestError("entity: use a JSON object")
    if not isinstance(count, int) or not 1 <= count <= MAX_COUNT:
        raise RequestError(f"count: use a whole number from 1 to {MAX_COUNT}")
    options = {name: body[name] for name in ("priority", "delay", "deduplication_key") if name in body}
    return task, entity, count, options | {"on_success": note_result}


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The settings are those of the worker: ``QUEUE_SYSTEM_REDIS_URL`` and the others."""
    settings = Settings.load()
    telemetry = configure(
        service_name=settings.service_name or "sample-app",
        otlp_endpoint=settings.otlp_endpoint,
        log_format=settings.log_format,
    )
    with settings.config() as config:
        app.state.queue = AsyncQueueManager(config)
        yield
        await app.state.queue.close()
    telemetry.shutdown()


app = Starlette(
    routes=[
        Route("/", index),
        Route("/enqueue", enqueue, methods=["POST"]),
        Route("/status", status),
        Route("/metrics", metrics),
    ],
    lifespan=lifespan,
)
