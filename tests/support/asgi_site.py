"""A site for uvicorn whose workers make pages slowly; the first worker that makes /slow hangs."""

import asyncio
import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from shmrhash import SharedCounter, SharedDict
from shmrhash.asgi import CacheMiddleware

NAME = os.environ["PAGES"]
HANG_S = 600

begun = SharedCounter(NAME + ".begun", key=str)
workers = SharedDict(NAME + ".workers", key=str, value=int)


async def page(request):
    path = request.url.path
    times = begun.inc(path)
    if path == "/slow" and times == 1:
        workers["rendering"] = os.getpid()
        await asyncio.sleep(HANG_S)
    await asyncio.sleep(0.02)
    return PlainTextResponse(f"{path} {times}")


application = Starlette(
    routes=[Route("/{path:path}", page)],
    middleware=[Middleware(CacheMiddleware, name=NAME, ttl=600, wait=HANG_S)],
)
