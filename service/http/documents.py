"""Base models of all JSON documents: request bodies, answers, pages and problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from store.jobs.spec import NO_NUL

_BIGGEST = 2**63 - 1
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=NO_NUL)]
Count = Annotated[int, Field(ge=0, le=_BIGGEST)]


class Answer(BaseModel):
    """A response document."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def of_row(cls, row: object, **others: Any) -> Self:  # noqa: ANN401 - values of any field
        """Build the document from a row.

        Args:
            row: has an attribute of the same name for each field that is not in ``others``.
            others: the values of the remaining fields.
        """
        names = cls.model_fields.keys() - others.keys() - {"object"}
        return cls(**{name: getattr(row, name) for name in names}, **others)


class Body(BaseModel):
    """A request document: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Listed(Answer):
    """A document with an id, which serves as the cursor of a list."""

    id: str


_Document = TypeVar("_Document", bound=Listed)


class Page(Answer, Generic[_Document]):
    """A page of a list, with its cursors."""

    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None
    data: list[_Document]

    @classmethod
    def of(cls, data: Sequence[_Document], *, has_more: bool, **others: Any) -> Self:  # noqa: ANN401 - values of any field
        """Build a page from its documents, and the values of further fields."""
        return cls(
            data=list(data),
            has_more=has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            **others,
        )


class FieldProblem(Answer):
    """One invalid field of a request."""

    param: str | None
    detail: str


class Problem(Answer):
    """An error (RFC 9457); some codes add members.

    Attributes:
        errors: every invalid field, if there are several.
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
