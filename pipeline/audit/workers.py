"""Who audits shards: what a process holds for all that it audits, and threads of one process."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.pipeline.audit.catalog_rows import CatalogRows
from segmint.pipeline.audit.content import ContentLooks, ContentPlan, ShardLook
from segmint.pipeline.audit.shard import FileSettings, ShardAudit, ShardPlan, audit_shard

SHARDS_AT_ONCE = 4
"""Shards that threads of one process audit at once."""


@dataclass(frozen=True)
class AuditTask:
    """What the audit of every shard of a dataset must know: light to send to another process."""

    storage: Storage
    dataset_uri: str
    manifest: DatasetManifest
    damaged_parts: frozenset[str]  # paths of parts of the catalog that are not what was pinned
    settings: FileSettings
    content: ContentPlan | None  # None: integrity alone


class ShardAuditor:
    """Audits shards of one dataset in one process, in threads too. In memory is a window of the catalog."""

    def __init__(self, task: AuditTask, looks: ContentLooks | None) -> None:
        """`looks` is what the task's `content` loads."""
        self._task = task
        self._looks = looks
        self._catalog = CatalogRows(task.storage, task.dataset_uri, task.manifest)
        for part in task.manifest.catalog:
            if part.path in task.damaged_parts:
                self._catalog.leave_out(part)

    def audit(self, plan: ShardPlan) -> ShardAudit:
        """Audits a shard; see `audit_shard`."""
        task = self._task
        look = None if self._looks is None else ShardLook(self._looks, plan.searched)
        catalog = self._catalog.read(*plan.ordinals)
        return audit_shard(task.storage, task.dataset_uri, plan, task.settings, catalog, look)


def audit_in_threads(auditor: ShardAuditor, plans: Iterable[ShardPlan]) -> Generator[ShardAudit, None, None]:
    """Audits shards in threads of this process, a few at once; gives them in their order, however many there are."""
    return map_ahead(auditor.audit, plans, SHARDS_AT_ONCE, SHARDS_AT_ONCE + 1, "audit")
