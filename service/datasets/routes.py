"""Routes for data sets, which are uploaded as files and stored as Parquet."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from anyio import CancelScope
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from hifi.data.formats import ENDINGS
from service.context import Gateway, GatewayDep  # noqa: TC001 - as above
from service.datasets.checking.conversion import convert
from service.datasets.checking.exchange import SPLITS, Limits
from service.datasets.documents import DatasetDocument, DatasetList
from service.datasets.spool import Form, receive_form
from service.http.auth import CallerDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.parameters import (
    DEFAULT_LIMIT,
    After,
    DatasetId,
    IdempotencyKey,
    Limit,
    check_key,
)
from service.http.problems import invalid_request
from service.http.replay import Answer, Keep, Once, request_key
from service.http.responses import problems
from store.datasets import Split, add_dataset, delete_dataset, get_dataset, list_datasets
from store.errors import ProblemError, QuotaExceededError

router = APIRouter(tags=["datasets"])

UPLOAD_PATH = "/datasets"
_LOCK_SECONDS = 120.0
_MAX_NAME = 128
_UNPACKED = 4  # the most that an upload may grow when unpacked
_FILE = {
    "type": "string",
    "format": "binary",
    "description": f"a file whose name ends in {', '.join(ENDINGS)}",
}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["train"],
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(SPLITS, _FILE),
        "name": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
    },
}


@router.post(
    UPLOAD_PATH,
    status_code=HTTPStatus.CREATED,
    response_model=DatasetDocument,
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
    responses=problems(
        HTTPStatus.CONFLICT, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.TOO_MANY_REQUESTS
    ),
)
async def post_dataset(
    request: Request, gateway: GatewayDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Upload a data set; every row is checked before the data set is stored."""
    check_key(request)
    with gateway.shares.uploads.hold(caller.tenant_id):
        return await _receive(request, gateway, caller.tenant_id, key)


async def _receive(request: Request, gateway: Gateway, tenant_id: str, key: str | None) -> Response:
    folder = await run_in_threadpool(_make_folder, gateway.uploads)
    try:
        form = await receive_form(request, folder=folder, files=SPLITS, fields=("name",))
        _check(form)
        once = Once(
            database=gateway.database,
            key=request_key(key, tenant_id=tenant_id, path=UPLOAD_PATH),
            request_sha256=_digest(form),
            lock_seconds=_LOCK_SECONDS,
            limiter=gateway.converting,
        )
        return await once.answer(partial(_add, gateway, tenant_id, form, folder))
    finally:
        # Also when the client disconnects or the server stops.
        with CancelScope(shield=True):
            await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


@router.get("/datasets", responses=problems(HTTPStatus.NOT_FOUND))
def get_datasets(
    gateway: GatewayDep, caller: CallerDep, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> DatasetList:
    """List the data sets, newest first."""
    with gateway.database.read() as session:
        page = list_datasets(session, caller.tenant_id, after=after, limit=limit)
    data = [DatasetDocument.of(dataset) for dataset in page.rows]
    return DatasetList.of(data, has_more=page.has_more)


@router.get("/datasets/{dataset_id}", responses=problems(HTTPStatus.NOT_FOUND))
def get_one_dataset(
    gateway: GatewayDep, caller: CallerDep, dataset_id: DatasetId
) -> DatasetDocument:
    """Get a data set."""
    with gateway.database.read() as session:
        return DatasetDocument.of(get_dataset(session, caller.tenant_id, dataset_id))


@router.delete(
    "/datasets/{dataset_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
def remove_dataset(gateway: GatewayDep, caller: CallerDep, dataset_id: DatasetId) -> Response:
    """Delete a data set that no unfinished job needs."""
    with gateway.database.write() as session:
        delete_dataset(session, caller.tenant_id, dataset_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _make_folder(uploads: Path) -> Path:
    uploads.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=uploads))


def _check(form: Form) -> None:
    """Raise for a form without training rows, or with an invalid name."""
    if "train" not in form.files:
        raise invalid_request("the form has no file named train", param="train")
    name = form.fields.get("name")
    if name is not None and not (0 < len(name) <= _MAX_NAME and "\x00" not in name):
        raise invalid_request(f"name must have 1 to {_MAX_NAME} characters, no NUL", param="name")


def _digest(form: Form) -> str:
    """Hash the form's content, including each file's ending, which determines its format."""
    document = {
        "fields": form.fields,
        "files": {split: [file.sha256, file.ending] for split, file in form.files.items()},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _add(gateway: Gateway, tenant_id: str, form: Form, folder: Path, keep: Keep) -> Answer:
    """Convert the received files, store them as blobs, then add the data set's row."""
    parquet = folder / "parquet"
    parquet.mkdir()
    unpacked = _UNPACKED * gateway.settings.max_upload_bytes
    limits = Limits(max_bytes=max(Limits.max_bytes, unpacked))
    converted = convert(form.files, folder=parquet, limits=limits)
    profile = converted.profile
    splits = {
        split: Split(blob=gateway.storage.put(tenant_id, path), rows=profile.rows[split])
        for split, path in converted.paths.items()
    }
    try:
        with gateway.database.write() as session:
            dataset = add_dataset(
                session,
                tenant_id,
                name=form.fields.get("name"),
                splits=splits,
                columns={column.name: column.type for column in profile.columns},
                profile=profile.to_json(),
                max_bytes=gateway.settings.tenant_max_bytes,
            )
            answer = Answer(
                status=HTTPStatus.CREATED,
                headers={"Location": f"{UPLOAD_PATH}/{dataset.id}"},
                body=DatasetDocument.of(dataset).model_dump_json(),
            )
            keep(session, answer)
    except QuotaExceededError as error:
        # Unlike with a full queue, waiting does not help: the tenant must delete something.
        status = HTTPStatus.FORBIDDEN
        raise ProblemError(error.code, status=status, detail=str(error)) from error
    return answer
