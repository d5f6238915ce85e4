"""The settings of all processes: read from the environment and checked once, at the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from store.errors import SettingsError
from store.orders import MAX_INPUTS, MAX_SECONDS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "HIFI_"
# Clearer messages than pydantic's.
_WANTED = {
    "broker_url": "redis://… or rediss://… is needed",
    "database_url": "postgresql://user:password@host/name or sqlite:////file is needed",
    "device": "auto, cpu, cuda or cuda:N is needed",
}
_REASONS = {
    "float_parsing": "a number is needed",
    "int_parsing": "a whole number is needed",
}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_PRIVATE = frozenset({"database_url", "broker_url", "artifacts_url", "infer_token"})
WHERE_MODELS_GO = (
    "copy a folder with config.json and safetensors into HIFI_MODELS (by default `models` in "
    "HIFI_HOME) on the workers' machine; it is listed soon, without a restart"
)
_GIB = 1 << 30


class Settings(BaseSettings):
    """The operator's settings, each an environment variable with the prefix ``HIFI_``.

    Attributes:
        home: the folder for everything without a setting of its own.
        database_url: ``postgresql://…`` or ``sqlite:///…``; SQLite in ``home`` if unset.
        broker_url: ``redis://…``; embedded, in ``home``, if unset.
        artifacts_url: a folder or ``s3://…``; a folder in ``home`` if unset.
        models: a folder whose subfolders are backbones; ``models`` in ``home`` if unset.
        allow_hub: whether backbones and data sets may come from the Hugging Face hub.
        auth: ``none`` is one tenant ``default``, on loopback only; ``keys`` requires a key.
        allowed_hosts: host names to which the gateway answers.
        host, port: where the gateway listens.
        device: of a worker: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        infer_url: the inference processes, separated by commas: ``http://host:port`` or
            ``unix:///socket``.
        infer_listen: where an inference process listens; ``infer_url`` if that names only one.
        infer_token: required by the inference process unless it listens on loopback.
        infer_device_bytes: the most bytes of head deltas on the inference process's device.
        infer_host_bytes: the most bytes of head deltas in host memory for a GPU; unused on a CPU.
        infer_disk_bytes: the most bytes of head deltas on its disk.
        infer_backbone_bytes: the most bytes of backbones in its memory.
        infer_batch_tokens: tokens of a pass over a backbone, with padding; by device if unset.
        infer_batch_wait_ms: how long an input waits for others while nothing is computed.
        infer_max_inputs: inputs in flight; a tenant may hold as many as remain free for others.
        infer_timeout_seconds: how long a prediction may take if its request sets no timeout.
        max_connections: open connections of a gateway, of all callers together.
        max_connections_per_address: of one address, or of one /64 network of IPv6 addresses.
        max_upload_bytes: of one upload, all files together.
        converter_seconds: how long reading one upload may take.
        converter_memory_bytes: the most memory of the process that reads one upload.
        tenant_max_queued, tenant_max_running, tenant_max_bytes: of tenants without own quotas.
        job_max_seconds: how long a job may run in all, whatever its spec allows.
        turn_seconds: how long a job runs before it makes room for a tenant that waits.
        lease_seconds: how long a worker may be silent before its job is taken back.
        checkpoint_seconds: between two checkpoints of a job.
        engine_stall_seconds: how long an engine may make no progress before it is replaced.
        engine_memory_bytes: the most memory of an engine; if unset, on a CPU half of the machine's.
        state_memory_bytes: the most of a job's hidden states in an engine's memory; if unset, an
            eighth of what the engine may use, at most 1 GiB.
        infer_memory_bytes: the same of the inference process; if unset, on a CPU three eighths.
        log_format: ``json``, or ``text`` for people.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, allow_inf_nan=False, env_ignore_empty=True
    )

    home: Path = Path(".hifi")
    # URLs may contain passwords.
    database_url: str = Field(
        default="", pattern=r"^(sqlite:///|postgresql(\+psycopg)?://)", repr=False
    )
    broker_url: str = Field(default="", pattern=r"^(rediss?://.*)?$", repr=False)
    artifacts_url: str = Field(default="", repr=False)
    models: Path = Path()
    allow_hub: bool = False
    auth: Literal["none", "keys"] = "none"
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = (
        "127.0.0.1",
        "localhost",
        "[::1]",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    infer_url: str = "http://127.0.0.1:8001"
    infer_listen: str = ""
    infer_token: SecretStr | None = None
    infer_device_bytes: PositiveInt = 4 * _GIB
    infer_host_bytes: PositiveInt = 4 * _GIB
    infer_disk_bytes: PositiveInt = 8 * _GIB
    infer_backbone_bytes: PositiveInt = 8 * _GIB
    infer_batch_tokens: PositiveInt | None = None
    infer_batch_wait_ms: NonNegativeFloat = 0.0
    # Half of it must hold a full request.
    infer_max_inputs: int = Field(default=4096, ge=2 * MAX_INPUTS)
    infer_timeout_seconds: float = Field(default=30.0, gt=0, le=MAX_SECONDS)
    max_connections: PositiveInt = 500
    max_connections_per_address: PositiveInt = 250
    max_upload_bytes: PositiveInt = _GIB
    converter_seconds: PositiveFloat = 300.0  # a GiB of short JSON lines takes 95 s of a core
    converter_memory_bytes: int = Field(default=_GIB, ge=_GIB // 4)
    tenant_max_queued: PositiveInt = 1000
    tenant_max_running: PositiveInt = 16
    tenant_max_bytes: PositiveInt = 100 * _GIB
    job_max_seconds: PositiveFloat = 24 * 3600.0
    turn_seconds: PositiveFloat = 300.0
    lease_seconds: PositiveFloat = 60.0
    checkpoint_seconds: PositiveFloat = 60.0
    engine_stall_seconds: PositiveFloat = 120.0
    engine_memory_bytes: int | None = Field(default=None, ge=_GIB)
    state_memory_bytes: NonNegativeInt | None = None
    infer_memory_bytes: int | None = Field(default=None, ge=_GIB)
    log_format: Literal["json", "text"] = "text"

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split host names at commas."""
        return _split_at_commas(value) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Place everything without a setting of its own in ``home``."""
        home = _place(values.get("home", cls.model_fields["home"].default))
        places = {
            "database_url": f"sqlite:///{home}/hifi.db",
            "artifacts_url": str(home / "artifacts"),
            "models": home / "models",
        }
        whole = {**places, **values, "home": home}
        return {**whole, "models": _place(whole["models"])}

    @model_validator(mode="after")
    def _check(self) -> Settings:
        """Raise for settings that would allow access without a key or token."""
        if self.auth == "none" and self.host not in _LOOPBACK:
            raise ValueError(
                f"HIFI_HOST={self.host} accepts connections from other machines and HIFI_AUTH=none "
                "requires no key: set HIFI_AUTH=keys, or listen on 127.0.0.1"
            )
        repeated = [url for url, count in Counter(self.infer_urls).items() if count > 1]
        if repeated or not self.infer_urls:
            fault = f"names {repeated[0]} twice" if repeated else "names no process"
            raise ValueError(f"HIFI_INFER_URL={self.infer_url} {fault}")
        for name, url in (
            *(("HIFI_INFER_URL", url) for url in self.infer_urls),
            ("HIFI_INFER_LISTEN", self.infer_listen),
        ):
            if url and not _is_private(url) and self.infer_token is None:
                raise ValueError(
                    f"{name}={url} accepts connections from other machines: set "
                    "HIFI_INFER_TOKEN, or use 127.0.0.1 or unix:///a/socket"
                )
        return self

    @property
    def work(self) -> Path:
        """The folder in which each worker of this home has its own, named by the worker's id."""
        return self.home / "work"

    @property
    def infer_urls(self) -> tuple[str, ...]:
        """The addresses of the inference processes."""
        return _split_at_commas(self.infer_url)

    def own_infer_url(self) -> str:
        """The address on which an inference process with these settings listens.

        Raises:
            SettingsError: the settings name several processes, and do not tell which this one is.
        """
        if self.infer_listen:
            return self.infer_listen
        if len(self.infer_urls) > 1:
            raise SettingsError(
                f"HIFI_INFER_URL={self.infer_url} names {len(self.infer_urls)} inference "
                "processes: set HIFI_INFER_LISTEN, or --listen, to the address of this one"
            )
        return self.infer_urls[0]

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is a file in ``home`` that needs no server."""
        return not self.broker_url


def _split_at_commas(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _is_private(url: str) -> bool:
    """Return whether only this machine can connect to the address."""
    address = urlsplit(url)
    return address.scheme == "unix" or address.hostname in _LOOPBACK


def _place(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{path} begins with the home of an unknown user") from error


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a setting is invalid; the message names the variable and the fault, and never
            contains a secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from None


def _describe(error: ErrorDetails) -> str:
    reason = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return reason
    field = str(error["loc"][0])
    reason = _WANTED.get(field) or _REASONS.get(error["type"]) or reason
    value = "" if field in _PRIVATE else f"={error['input']!r}"
    return f"{PREFIX}{field.upper()}{value}: {reason}"
