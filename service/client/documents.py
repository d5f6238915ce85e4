"""Types of the server's JSON documents; unknown fields are kept.

They are not the server's models, which have defaults, and datetimes instead of strings.
"""

from __future__ import annotations

from typing import Any, Generic, NotRequired, TypedDict, TypeVar

Item = TypeVar("Item")


class Page(TypedDict, Generic[Item]):
    """A page of a list, with its cursors."""

    object: str
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Note(TypedDict):
    """Something about a data set that does not prevent its use; ``param`` is the column."""

    code: str
    message: str
    param: str


class Dataset(TypedDict):
    """An uploaded data set; each of its splits has a number of ``rows``."""

    id: str
    object: str
    name: str | None
    splits: dict[str, dict[str, int]]
    columns: dict[str, str]
    notes: NotRequired[list[Note]]
    bytes: int
    sha256: str
    created_at: str


class Backbone(TypedDict):
    """A pretrained model that at least one worker has."""

    id: str
    object: str
    architecture: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_size: int
    parameters: int
    fingerprint: str


class UnavailableModel(TypedDict):
    """A model that workers have found and no job can use: ``reading`` or ``unusable``."""

    id: str
    status: str
    reason: str


class BackbonePage(Page[Backbone]):
    """A page of backbones, with the models that no job can use."""

    unavailable: list[UnavailableModel]


class Progress(TypedDict):
    """The progress of a job."""

    phase: str | None
    step: int | None
    total_steps: int | None
    fraction: float | None
    eta_seconds: float | None


class Selection(TypedDict):
    """The heads that a job tunes."""

    heads: list[list[int]]
    trainable_parameters: int
    fraction: float


class Yardsticks(TypedDict):
    """All metrics of what a tuned model is compared with, by name; None where there is none."""

    majority: dict[str, float | None] | None
    probe: dict[str, float | None] | None
    untuned: dict[str, float | None] | None


class ClassScores(TypedDict):
    """How well one class is found; ``support`` is the number of its rows."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Report(TypedDict):
    """The scores of each class, and the rows by true and by predicted class."""

    split: str
    classes: int
    per_class: list[ClassScores]
    confusion: list[list[int]] | None


class Result(TypedDict):
    """The metrics of a job, and its durations and speed; NaN is None."""

    metrics: dict[str, float | None]
    test: NotRequired[dict[str, float | None] | None]
    report: NotRequired[Report | None]
    yardsticks: Yardsticks | None
    best_step: int | None
    train_seconds: float
    selection_seconds: float
    samples_per_second: float | None


class Blob(TypedDict):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class Artifact(Blob):
    """A head delta: the float32 file, and the files of all encodings."""

    encodings: dict[str, Blob]


class Failure(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class Warned(TypedDict):
    """What a job's owner should know; the job runs nevertheless."""

    code: str
    message: str
    param: str | None


class Job(TypedDict):
    """One requested fine-tune."""

    id: str
    object: str
    status: str
    tenant: str
    name: str | None
    metadata: dict[str, str]
    spec: dict[str, Any]
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: Progress
    attempt: int
    selection: Selection | None
    result: Result | None
    warnings: list[Warned]
    artifact: Artifact | None
    error: Failure | None


class AdminJob(TypedDict):
    """A job as administrators see it, without what its owner has written."""

    id: str
    object: str
    tenant: str
    status: str
    model: str | None
    attempt: int
    worker: str | None
    error: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class Classes(TypedDict):
    """The classes that a job would learn; ``names`` is empty if there are many."""

    count: int
    names: list[str]
    alike: list[list[str]]


class Estimate(TypedDict):
    """The estimated cost of a job; unknown values are None.

    The artifact has the ``bytes`` of the head delta in each encoding.
    """

    object: str
    classes: NotRequired[Classes | None]
    trainable_parameters: int | None
    fraction: float | None
    artifact: dict[str, dict[str, int]] | None
    steps: int | None
    seconds: float | None
    spec: dict[str, Any]
    warnings: list[Warned]


class Event(TypedDict):
    """Something that happened to a job."""

    id: str
    object: str
    created_at: str
    level: str
    type: str
    message: str
    data: dict[str, Any]


class LayerHeads(TypedDict):
    """Scores of a layer's heads."""

    layer: int
    values: list[float | None]
    information_richness: list[float | None]
    correlation: list[list[float | None]]
    importance: list[float | None]
    iterations: int
    selected: list[int]


class Heads(TypedDict):
    """Scores and selection of a job."""

    object: str
    job: str
    model: str
    fingerprint: str
    score: str
    k: int | None
    budget: int | None
    xi: float
    d: float
    strategy: str
    teleport: str
    n_samples: int
    num_layers: int
    num_heads: int
    head_dim: int
    trainable_parameters: int
    fraction: float
    layers: list[LayerHeads]
    artifact: NotRequired[dict[str, Any] | None]


class Input(TypedDict, total=False):
    """A text, a pair of texts, or an image file in Base64."""

    text: str
    text_pair: str
    image: str


class JobInput(TypedDict):
    """An input, and the job whose head delta predicts it."""

    job: str
    input: Input


class SharedInput(TypedDict):
    """An input for several jobs."""

    jobs: list[str]
    input: Input


class Entity(TypedDict):
    """An entity in an input: its first character, one after its last one, and what it is."""

    start: int
    end: int
    label: str
    score: float
    text: str


class Prediction(TypedDict):
    """The answer for one item: label or labels, and scores; a value; entities; or an error.

    That for an input of several jobs has only ``index`` and ``answers``, one per job.
    """

    index: int
    job: NotRequired[str | None]
    answers: NotRequired[list[Prediction]]
    label: NotRequired[str]
    score: NotRequired[float]
    labels: NotRequired[list[str]]
    scores: NotRequired[dict[str, float]]
    value: NotRequired[float]
    entities: NotRequired[list[Entity]]
    tags: NotRequired[list[str | None] | None]
    error: NotRequired[Failure]


class Predictions(TypedDict):
    """An answer for each item, in the order of the request."""

    object: str
    data: list[Prediction]


class BatchProgress(TypedDict):
    """How many rows have their answers."""

    rows: int
    total_rows: int
    fraction: float
    eta_seconds: float | None


class BatchPrediction(TypedDict):
    """A batch prediction."""

    id: str
    object: str
    status: str
    tenant: str
    name: str | None
    dataset: str
    split: str
    jobs: list[str]
    format: str
    truncate: bool
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: BatchProgress
    artifact: dict[str, Any] | None
    error: Failure | None


class Quotas(TypedDict):
    """A tenant's limits."""

    max_queued: int
    max_running: int
    max_bytes: int


class Tenant(TypedDict):
    """An owner of data sets and jobs."""

    id: str
    object: str
    name: str
    is_admin: bool
    quotas: Quotas
    created_at: str
    suspended_at: str | None


class Usage(TypedDict):
    """A tenant's usage and quotas."""

    object: str
    tenant: str
    jobs: dict[str, int]
    stored_bytes: int
    quotas: Quotas


class Key(TypedDict):
    """A key of a tenant; only the response that creates it contains the secret."""

    id: str
    object: str
    tenant: str
    name: str | None
    secret: NotRequired[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class AuditActor(TypedDict):
    """Who acted: a tenant with its key; neither for the command line on the server."""

    tenant: str | None
    key: str | None
    request_id: str | None


class AuditEvent(TypedDict):
    """Who did what to a tenant, a key, a data set or a job."""

    id: str
    object: str
    created_at: str
    action: str
    actor: AuditActor
    tenant: str
    subject: str
    details: dict[str, Any]
