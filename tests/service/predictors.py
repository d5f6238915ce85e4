"""A fake inference process with scripted answers that records its requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.waiting import patience

if TYPE_CHECKING:
    from starlette.requests import Request


def say(item: dict[str, Any]) -> dict[str, Any]:
    """Predict whether a text is long or short; some texts get a number or an error."""
    text = item["input"].get("text", "")
    if text == "number":
        return {"value": 1.5}
    if text == "too long":
        error = {"code": "text_too_long", "message": "600 tokens, at most 128", "param": "text"}
        return {"error": error}
    if text == "too late":
        return {"error": {"code": "deadline_exceeded", "message": "too late", "param": None}}
    scores = {"long": 0.25, "short": 0.75} if len(text) < 100 else {"long": 0.9, "short": 0.1}
    label = max(scores, key=scores.__getitem__)
    return {"label": label, "score": scores[label], "scores": scores}


class Predictor:
    """Stands in for the inference process.

    Attributes:
        asked: the request bodies received.
        headers: the headers of those requests.
        answer: instead of what :func:`say` says.
        is_silent: it does not answer; ``gone`` is set when the client has hung up.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[], Response] | None = None
        self.is_silent = False
        self.gone = threading.Event()
        self.app = Starlette(routes=[Route("/predict", self._predict, methods=["POST"])])

    async def _predict(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.is_silent:
            async with asyncio.timeout(patience()):
                await request.receive()
            self.gone.set()
            return Response()
        if self.answer is not None:
            return self.answer()
        return JSONResponse({"data": [say(item) for item in body["items"]]})
