"""What the jobs of one call share: a model here, and worker processes with theirs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rsgeoseg.engine.block_work import leave_if_imported_by_a_worker
from rsgeoseg.errors import UsageError
from rsgeoseg.jobs.loading import GivenModel, model_source

if TYPE_CHECKING:
    from types import TracebackType

    from distributed import Client

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.engine.block_work import ModelSource
    from rsgeoseg.engine.order import RunJob


class Crew:
    """Loads a model and starts processes for the first job that wants them, and keeps them for the next ones.

    Args:
        given: a model that came with the jobs, in place of the one they name.
    """

    def __init__(self, given: Segmenter | None = None) -> None:
        self._given = given
        self._loaded: tuple[ModelSource, str, Segmenter] | None = None
        self._client: Client | None = None
        self._of: tuple[int | None, str | None] = (None, None)
        self._joined = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes that were started here; a cluster that was joined goes on."""
        self._joined.__exit__(kind, error, trace)

    def source(self, job: RunJob) -> ModelSource:
        """Return what gives a job's model in any process."""
        return model_source(job) if self._given is None else GivenModel(self._given)

    def segmenter(self, job: RunJob) -> Segmenter:
        """Return a job's model in this process.

        Raises:
            ModelError, UsageError: as ``load_segmenter``.
        """
        if self._given is not None:
            return self._given
        source = self.source(job)
        if self._loaded is None or self._loaded[:2] != (source, job.device):
            self._loaded = None  # makes room first
            self._loaded = (source, job.device, source(job.device))
        return self._loaded[2]

    def start(self, job: RunJob) -> None:
        """Start a job's processes, if it wants some; they load its model while this process does.

        A cluster that others run is left alone until the run begins, and nothing is started for an output that may be
        finished.

        Raises:
            UsageError, ClusterError: as ``client``.
        """
        if job.workers is None:
            return
        leave_if_imported_by_a_worker()
        if job.resume and job.output is not None and Path(job.output).exists():
            return
        client = self.client(job)
        if self._given is None:
            from rsgeoseg.engine.cluster import keep_model  # noqa: PLC0415  (an extra)

            keep_model(client, self.source(job), job.device)

    def client(self, job: RunJob) -> Client:
        """Return a client of the cluster that a job asks for.

        Raises:
            UsageError: Dask is missing, nobody answers at the scheduler's address, or it has no workers.
            ClusterError: the processes do not start.
        """
        wanted = (job.workers, job.scheduler)
        if self._client is None or self._of != wanted:
            self._joined.close()
            self._client, self._of = self._join(job), wanted
        return self._client

    def _join(self, job: RunJob) -> Client:
        try:
            from rsgeoseg.engine import connect  # noqa: PLC0415  (an extra)
        except ImportError as error:
            msg = f"workers need Dask ({error}): install rsgeoseg[dask]"
            raise UsageError(msg) from error
        cluster = connect.local_cluster(job.workers) if job.workers else connect.joined_cluster(str(job.scheduler))
        return self._joined.enter_context(cluster)
