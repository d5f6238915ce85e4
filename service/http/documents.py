"""What all features' documents are made of: bodies, answers, lists and problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

_BIGGEST = 2**63 - 1
_NO_NUL = r"^[^\x00]*$"  # Postgres stores none
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_NO_NUL)]
Count = Annotated[int, Field(ge=0, le=_BIGGEST)]


class Answer(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def of_row(cls, row: object, **others: Any) -> Self:  # noqa: ANN401 - values of any field
        """Show a row.

        Args:
            row: has an attribute for each field, under the same name.
            others: fields that the row has not, or in another form.
        """
        names = cls.model_fields.keys() - others.keys() - {"object"}
        return cls(**{name: getattr(row, name) for name in names}, **others)


class Body(BaseModel):
    """What a caller sends: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Listed(Answer):
    """What has an id, so that a list can go on behind it."""

    id: str


_Document = TypeVar("_Document", bound=Listed)


class Page(Answer, Generic[_Document]):
    """Some documents of a list, and where to go on."""

    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None
    data: list[_Document]

    @classmethod
    def of(cls, data: Sequence[_Document], *, has_more: bool) -> Self:
        """Put documents on a page."""
        return cls(
            data=list(data),
            has_more=has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )


class FieldProblem(Answer):
    """What is wrong with one field of a request."""

    param: str | None
    detail: str


class Problem(Answer):
    """An error (RFC 9457), with the further members that some codes have.

    Attributes:
        errors: every field at fault, where there are several.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None
    request_id: str | None
    errors: list[FieldProblem] = Field(default_factory=list)
