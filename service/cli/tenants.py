"""``hifi tenants``: manage tenants and their keys, in the tables or through the API."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hifi.cli import output
from hifi.cli.options import given
from service.cli import options
from service.cli.actions import Actions, perform
from service.cli.pages import report_deleted, report_page
from store.administration.audit import ACTIONS
from store.errors import NotFoundError
from store.tenants import normal_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from service.cli.tenant_tables import Target
    from service.client.documents import AuditEvent, Key, Quotas, Tenant, Usage

run = perform

_QUOTAS = {
    "max_queued": "waiting jobs",
    "max_running": "running jobs",
    "max_bytes": "stored bytes",
}
_DEFAULT = "default"
_PAGE = 100
_NOTES = (
    "With --url or HIFI_URL, requests go to that server, with an administrator's HIFI_API_KEY. "
    "Without either, the tables of HIFI_DATABASE_URL are used directly: create the first "
    "administrator this way, on the server itself."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi tenants``."""
    parser.description = f"Manage tenants and their keys, and show their usage. {_NOTES}"
    actions = Actions(parser, connect=_open)
    _add_tenants(actions)
    _add_audit(actions)
    group = actions.add_group("keys", summary="create, list, replace and revoke keys")
    _add_keys(Actions(group, connect=_open))


def _add_tenants(actions: Actions[Target]) -> None:
    create = actions.add("create", _create, summary="create a tenant", notes=_NOTES)
    create.add_argument("new_name", metavar="NAME", help="must be unique")
    create.add_argument("--admin", action="store_true", help="let it manage tenants and keys")
    create.add_argument(
        "--with-key", action="store_true", help="also create a key; its secret is shown only once"
    )
    _add_quotas(create, type_=int, note="default: the server's setting")
    update = actions.add("update", _update, summary="change a tenant's quotas", notes=_NOTES)
    _add_quotas(update, type_=_limit, note="`default`: the server's setting")
    listing = actions.add("list", _list, summary="list the tenants, newest first", notes=_NOTES)
    options.add_page(listing)
    usage = actions.add("usage", _usage, summary="show a tenant's usage", notes=_NOTES)
    suspend = actions.add(
        "suspend",
        _suspend,
        summary="refuse a tenant's keys and leave its queued jobs waiting",
        notes=_NOTES,
    )
    resume = actions.add("resume", _resume, summary="end a tenant's suspension", notes=_NOTES)
    delete = actions.add(
        "delete",
        _delete,
        summary="delete a tenant with its keys, jobs, data sets and files",
        notes=_NOTES,
    )
    delete.add_argument("--yes", action="store_true", help="delete it without being asked again")
    for action in (update, usage, suspend, resume, delete):
        _add_tenant(action)
    for action in (create, update, listing, usage, suspend, resume, delete):
        _add_server(action)


def _add_audit(actions: Actions[Target]) -> None:
    audit = actions.add("audit", _audit, summary="show who did what, newest first", notes=_NOTES)
    audit.add_argument("--tenant", metavar="TENANT", help="only of this tenant: its id or its name")
    audit.add_argument("--action", choices=ACTIONS, help="only events of this kind")
    options.add_page(audit)
    _add_server(audit)


def _add_keys(actions: Actions[Target]) -> None:
    create = actions.add(
        "create", _create_key, summary="create a key; its secret is shown only once", notes=_NOTES
    )
    create.add_argument("--name", metavar="NAME", help="for people")
    listing = actions.add(
        "list", _list_keys, summary="list a tenant's keys, newest first", notes=_NOTES
    )
    listing.add_argument(
        "tenant_name",
        nargs="?",
        metavar="TENANT",
        help="its id, ten_…, or its name (default: the tenant of HIFI_API_KEY)",
    )
    options.add_page(listing)
    replace = actions.add(
        "replace",
        _replace_key,
        summary="create a key in place of yours or, for administrators, of any; its secret is "
        "shown only once",
        notes=_NOTES,
    )
    revoke = actions.add("revoke", _revoke, summary="revoke a key, effective at once", notes=_NOTES)
    for action in (replace, revoke):
        action.add_argument("key_id", metavar="KEY", help="its id, key_…")
    replace.add_argument(
        "--grace-hours",
        type=int,
        default=0,
        metavar="N",
        help="how long the old key still works (default: %(default)s)",
    )
    for action in (create, replace):
        action.add_argument(
            "--expires-days", type=int, metavar="N", help="let the new key expire after N days"
        )
    _add_tenant(create)
    for action in (create, listing, replace, revoke):
        _add_server(action)


def _add_tenant(action: argparse.ArgumentParser) -> None:
    action.add_argument("tenant_name", metavar="TENANT", help="its id, ten_…, or its name")


def _add_server(action: argparse.ArgumentParser) -> None:
    options.add_server(action, default="HIFI_URL, or else the tables")


def _add_quotas(
    action: argparse.ArgumentParser, *, type_: Callable[[str], int | str], note: str
) -> None:
    for quota, of in _QUOTAS.items():
        name = f"--{quota.replace('_', '-')}"
        action.add_argument(name, type=type_, metavar="N", help=f"limit of {of} ({note})")


def _open(args: argparse.Namespace) -> AbstractContextManager[Target]:
    from service.cli.tenant_tables import open_tables

    if options.names_server(args):
        return options.connect(args)
    return open_tables()


def _find(target: Target, name: str) -> str:
    """Return the id of the tenant of that id or name."""
    if name.startswith("ten_"):
        return name
    name = normal_name(name)
    after = None
    while True:
        page = target.tenants.list(after=after, limit=_PAGE)
        for tenant in page["data"]:
            if tenant["name"] == name:
                return tenant["id"]
        if not page["has_more"]:
            raise NotFoundError("tenant", name)
        after = page["last_id"]


def _create(target: Target, args: argparse.Namespace) -> int:
    quotas = given(args, _QUOTAS)
    tenant = target.tenants.create(args.new_name, is_admin=args.admin, quotas=quotas)
    key = target.keys.create(tenant["id"], name=None, expires_at=None) if args.with_key else None
    document = tenant if key is None else {**tenant, "key": key}
    entries = _describe_tenant(tenant) | ({} if key is None else _describe_key(key))
    output.report(document, lambda _: entries, as_json=args.json)
    if key is None and not args.json:
        output.note(f"no key yet: create one with `hifi tenants keys create {tenant['id']}`")
    return output.EXIT_OK


def _limit(text: str) -> int | str:
    try:
        return text if text == _DEFAULT else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor default") from None


def _update(target: Target, args: argparse.Namespace) -> int:
    quotas = {
        name: None if limit == _DEFAULT else limit for name, limit in given(args, _QUOTAS).items()
    }
    tenant = target.tenants.change_quotas(_find(target, args.tenant_name), quotas)
    return output.report(tenant, _describe_tenant, as_json=args.json)


def _list(target: Target, args: argparse.Namespace) -> int:
    page = target.tenants.list(after=args.after, limit=args.limit)
    return report_page(page, args, columns=_TENANT_COLUMNS, what="tenants")


_TENANT_COLUMNS: dict[str, Callable[[Tenant], str]] = {
    "id": lambda tenant: tenant["id"],
    "name": lambda tenant: tenant["name"],
    "": lambda tenant: " ".join(filter(None, _states(tenant))),
    "created": lambda tenant: output.format_moment(tenant["created_at"]),
}


def _states(tenant: Tenant) -> tuple[str, str]:
    return (
        "administrator" if tenant["is_admin"] else "",
        "suspended" if tenant["suspended_at"] else "",
    )


def _suspend(target: Target, args: argparse.Namespace) -> int:
    tenant = target.tenants.suspend(_find(target, args.tenant_name))
    return output.report(tenant, _describe_tenant, as_json=args.json)


def _resume(target: Target, args: argparse.Namespace) -> int:
    tenant = target.tenants.resume(_find(target, args.tenant_name))
    return output.report(tenant, _describe_tenant, as_json=args.json)


def _delete(target: Target, args: argparse.Namespace) -> int:
    tenant_id = _find(target, args.tenant_name)
    if not args.yes:
        usage = target.tenants.usage(tenant_id)
        return output.fail(
            f"this deletes {tenant_id} with {sum(usage['jobs'].values())} jobs and "
            f"{output.format_bytes(usage['stored_bytes'])}, and cannot be undone: add --yes"
        )
    target.tenants.delete(tenant_id)
    return report_deleted(tenant_id, args, kind="tenant")


def _audit(target: Target, args: argparse.Namespace) -> int:
    tenant_id = None if args.tenant is None else _find(target, args.tenant)
    page = target.tenants.audit(
        tenant_id=tenant_id, action=args.action, after=args.after, limit=args.limit
    )
    return report_page(page, args, columns=_AUDIT_COLUMNS, what="events")


_AUDIT_COLUMNS: dict[str, Callable[[AuditEvent], str]] = {
    "when": lambda event: output.format_moment(event["created_at"]),
    "action": lambda event: event["action"],
    "tenant": lambda event: event["tenant"],
    "subject": lambda event: event["subject"],
    "by": lambda event: event["actor"]["tenant"] or "the server's command line",
    "key": lambda event: event["actor"]["key"] or "",
    "details": lambda event: ", ".join(f"{k} {v}" for k, v in event["details"].items()),
    "id": lambda event: event["id"],
}


def _usage(target: Target, args: argparse.Namespace) -> int:
    usage = target.tenants.usage(_find(target, args.tenant_name))
    return output.report(usage, _describe_usage, as_json=args.json)


def _describe_usage(usage: Usage) -> dict[str, str]:
    jobs = ", ".join(f"{count} {status}" for status, count in usage["jobs"].items() if count)
    quotas = usage["quotas"]
    return {
        "tenant": usage["tenant"],
        "jobs": jobs or "none",
        "stored": f"{output.format_bytes(usage['stored_bytes'])} of "
        f"{output.format_bytes(quotas['max_bytes'])}",
        "quotas": _describe_quotas(quotas),
    }


def _create_key(target: Target, args: argparse.Namespace) -> int:
    tenant_id = _find(target, args.tenant_name)
    key = target.keys.create(tenant_id, name=args.name, expires_at=_expiry(args))
    return output.report(
        key, lambda key: {"tenant": key["tenant"], **_describe_key(key)}, as_json=args.json
    )


def _replace_key(target: Target, args: argparse.Namespace) -> int:
    key = target.keys.replace(
        args.key_id, grace_seconds=args.grace_hours * 3600, expires_at=_expiry(args)
    )
    return output.report(
        key, lambda key: {"tenant": key["tenant"], **_describe_key(key)}, as_json=args.json
    )


def _expiry(args: argparse.Namespace) -> datetime | None:
    days: int | None = args.expires_days
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def _list_keys(target: Target, args: argparse.Namespace) -> int:
    tenant_id = None if args.tenant_name is None else _find(target, args.tenant_name)
    page = target.keys.list(tenant_id, after=args.after, limit=args.limit)
    return report_page(page, args, columns=_KEY_COLUMNS, what="keys")


_KEY_COLUMNS: dict[str, Callable[[Key], str]] = {
    "id": lambda key: key["id"],
    "name": lambda key: key["name"] or "",
    "created": lambda key: output.format_moment(key["created_at"]),
    "expires": lambda key: output.format_moment(key["expires_at"]),
    "revoked": lambda key: output.format_moment(key["revoked_at"]),
}


def _revoke(target: Target, args: argparse.Namespace) -> int:
    target.keys.revoke(args.key_id)
    return report_deleted(args.key_id, args, kind="api_key", verb="revoked")


def _describe_tenant(tenant: Tenant) -> dict[str, str]:
    return {
        "tenant": f"{tenant['id']}  {tenant['name']}",
        "administrator": "yes" if tenant["is_admin"] else "",
        "suspended": output.format_moment(tenant["suspended_at"]),
        "quotas": _describe_quotas(tenant["quotas"]),
    }


def _describe_key(key: Key) -> dict[str, str]:
    return {
        "key": key["id"],
        "secret": f"{key['secret']}  (for HIFI_API_KEY; shown only once)",
        "expires": output.format_moment(key["expires_at"]),
    }


def _describe_quotas(quotas: Quotas) -> str:
    return (
        f"{quotas['max_queued']:,} waiting, {quotas['max_running']:,} running, "
        f"{output.format_bytes(quotas['max_bytes'])}"
    )
