"""Routes for data sets, which are uploaded as files and stored as Parquet."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it when it runs
from starlette.responses import Response

from hifi.data.formats import ENDINGS
from hifi.data.spec import SPLITS
from service.context import Gateway, GatewayDep  # noqa: TC001 - as above
from service.datasets.checking.conversion import ConvertedDataset, convert
from service.datasets.checking.exchange import Limits
from service.datasets.documents import DatasetDocument, DatasetList
from service.datasets.spool import Form, receive_form
from service.http.auth import (  # noqa: TC001 - FastAPI reads it when it runs
    ActorDep,
    CallerDep,
)
from service.http.parameters import (
    After,
    DatasetId,
    IdempotencyKey,
    Limit,
    Name,
    check_key,
)
from service.http.problems import invalid_request
from service.http.replay import Answer, Keep, Once, request_key
from service.http.responses import problems
from service.paging import DEFAULT_LIMIT
from store.administration.audit import Actor, record
from store.datasets import Split, add_dataset, delete_dataset, get_dataset, list_datasets
from store.errors import ArtifactStorageError
from store.storage.space import store_files
from store.waiting import while_connected

if TYPE_CHECKING:
    from service.http.space import UploadSpace
    from store.idempotency import RequestKey

router = APIRouter(tags=["datasets"])

UPLOAD_PATH = "/datasets"
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
    tenant_id, length = caller.tenant_id, request.headers.get("content-length")
    identity = request_key(key, tenant_id=tenant_id, path=UPLOAD_PATH)
    with gateway.shares.uploads.hold(tenant_id):
        async with gateway.space.hold(
            tenant_id, key=identity, declared=None if length is None else int(length)
        ) as space:
            return await _receive(space.metered(request), gateway, tenant_id, identity, space)


async def _receive(
    request: Request, gateway: Gateway, tenant_id: str, key: RequestKey | None, space: UploadSpace
) -> Response:
    folder = await run_in_threadpool(_make_folder, gateway.uploads)
    try:
        form = await receive_form(request, folder=folder, files=SPLITS, fields=("name",))
        _check(form)
        once = Once(
            database=gateway.database,
            key=key,
            request_sha256=_digest(form),
        )
        work = partial(
            _convert,
            request,
            gateway,
            tenant_id=tenant_id,
            form=form,
            folder=folder,
            space=space,
        )
        return await once.answer(work)
    finally:
        # Also when the client disconnects or the server stops.
        with CancelScope(shield=True):
            await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


@router.get("/datasets", responses=problems(HTTPStatus.NOT_FOUND))
def get_datasets(
    *,
    gateway: GatewayDep,
    caller: CallerDep,
    name: Name = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> DatasetList:
    """List the data sets, newest first."""
    with gateway.database.read() as session:
        page = list_datasets(session, caller.tenant_id, name=name, after=after, limit=limit)
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
async def remove_dataset(
    gateway: GatewayDep, caller: CallerDep, actor: ActorDep, dataset_id: DatasetId
) -> Response:
    """Delete a data set that no unfinished job needs."""
    await run_in_threadpool(_delete, gateway, actor, caller.tenant_id, dataset_id)
    await gateway.space.free(caller.tenant_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _delete(gateway: Gateway, actor: Actor, tenant_id: str, dataset_id: str) -> None:
    with gateway.database.write() as session:
        delete_dataset(session, tenant_id, dataset_id)
        record(session, actor, "dataset.deleted", tenant_id=tenant_id, subject_id=dataset_id)


def _make_folder(uploads: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="upload-", dir=uploads))
    except OSError as error:
        raise ArtifactStorageError(f"cannot store the upload: {error.strerror}") from error


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


async def _convert(
    request: Request,
    gateway: Gateway,
    keep: Keep,
    *,
    tenant_id: str,
    form: Form,
    folder: Path,
    space: UploadSpace,
) -> Answer:
    """Convert the received files when it is the tenant's turn, and add the data set.

    Raises:
        CallerLeftError: the caller disconnected; the conversion has ended.
    """
    settings = gateway.settings
    limits = Limits(
        max_bytes=max(Limits.max_bytes, _UNPACKED * settings.max_upload_bytes),
        seconds=settings.converter_seconds,
        memory=settings.converter_memory_bytes,
    )
    async with AsyncExitStack() as held:
        turn = gateway.converting.hold(tenant_id)
        await while_connected(request.receive, held.enter_async_context(turn))
        converting = convert(form.files, folder=folder, limits=limits)
        converted = await while_connected(request.receive, converting)
        for file in form.files.values():  # there is a copy now, and there will be a third
            file.path.unlink()
        add = partial(_add, gateway, tenant_id, form, converted, keep, space=space)
        # Its own thread: the turns limit how many there are, and other requests need the others.
        return await to_thread.run_sync(add, limiter=CapacityLimiter(1))


def _add(
    gateway: Gateway,
    tenant_id: str,
    form: Form,
    converted: ConvertedDataset,
    keep: Keep,
    *,
    space: UploadSpace,
) -> Answer:
    """Store the converted files as blobs, then add the data set's row."""
    profile = converted.profile
    max_bytes = gateway.settings.tenant_max_bytes
    blobs = store_files(
        converted.paths,
        database=gateway.database,
        storage=gateway.storage,
        tenant_id=tenant_id,
        reservation_id=space.reservation_id,
        max_bytes=max_bytes,
    )
    with gateway.database.write() as session:
        dataset = add_dataset(
            session,
            tenant_id,
            name=form.fields.get("name"),
            splits={
                split: Split(blob=blob, rows=profile.rows[split]) for split, blob in blobs.items()
            },
            columns={
                column.name: column.type for column in profile.columns if column.left_out is None
            },
            profile=profile.to_json(),
            max_bytes=max_bytes,
            reservation_id=space.reservation_id,
        )
        answer = Answer(
            status=HTTPStatus.CREATED,
            headers={"Location": f"{UPLOAD_PATH}/{dataset.id}"},
            body=DatasetDocument.of(dataset).model_dump_json(),
        )
        keep(session, answer)
    return answer
