"""From a request to what answers it: the opened run, for whom it recommends, which items, and how they are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from antpipe.errors import UsageError
from antpipe.evaluation.vectors import OpenRun, open_for
from antpipe.runtime.devices import choose_device
from antpipe.serving.audience import Audience, histories_in, these_users
from antpipe.serving.offer import Offer
from antpipe.serving.recommend import Wishes, offer_for, wishes_of
from antpipe.settings.serving import RecommendConfig
from antpipe.store.store import Store


@dataclass(frozen=True)
class BatchRequest:
    """Recommendations for many.

    users: `all`, a file with one id per line, or ids. items_file: in place of users, a file with one history per line.
    new_items: a file of products that the store does not have.
    """

    store: Store
    run: Path
    domain: str
    settings: RecommendConfig
    users: str | Path | Sequence[str] | None = None
    items_file: Path | None = None
    new_items: Path | None = None


@dataclass(frozen=True)
class OpenBatch:
    opened: OpenRun
    audience: Audience
    offer: Offer
    wishes: Wishes


def prepare(request: BatchRequest) -> OpenBatch:
    """Open the run of a request and read its files. Raises as `open_with`, `histories_in`, `these_users` and
    `offer_for`, and UsageError unless exactly one of users and items_file is given."""
    if (request.users is None) == (request.items_file is None):
        raise UsageError("name either --users or --items-file")
    unknown = request.settings.unknown
    opened = open_with(request.store, request.run, request.domain, request.new_items, request.settings.device)
    if request.items_file is not None:
        audience = histories_in(opened, request.items_file, unknown)
    else:
        audience = these_users(opened, request.users or (), unknown)
    return OpenBatch(opened, audience, offer_for(opened, request.settings), wishes_of(request.settings))


def open_with(store: Store, run: Path, domain: str, new_items: Path | None, device: str) -> OpenRun:
    """A run opened for a domain, with the new items of a file. device: `auto` or another that choose_device knows.
    Raises as `choose_device` and `open_for`, and for new items as `read_new_items` and `describe_new_items`."""
    where = choose_device(device)
    opened = replace(open_for(store, run, domain), device=str(where))
    if new_items is None:
        return opened
    from antpipe.serving.new_items import describe_new_items, read_new_items, with_new_items

    added = read_new_items(new_items, store.domain(domain))
    return with_new_items(opened, describe_new_items(store, opened, added))
