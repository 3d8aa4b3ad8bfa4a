"""What the jobs of one call share: a model here, and worker processes with theirs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rsgeoseg.engine.block_work import leave_if_imported_by_a_worker
from rsgeoseg.errors import UsageError
from rsgeoseg.jobs.model_source import GivenModel, KeptModel, model_source

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
        self._kept: tuple[ModelSource, str] | None = None
        """Of the model that the processes were told to load."""
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
        """Return a job's model in this process; where processes of ours have it, what is known of it.

        A job with bounded memory has it here: its needs are measured.

        Raises:
            ModelError, UsageError: as ``load_segmenter``.
            ClusterError: the processes were lost.
        """
        if self._given is not None:
            return self._given
        source = self.source(job)
        if self._loaded is None or self._loaded[:2] != (source, job.device):
            self._loaded = None  # makes room first
            kept = job.workers is not None and job.max_memory is None and self._kept == (source, job.device)
            self._loaded = (source, job.device, self._ask(job, source) if kept else source(job.device))
        return self._loaded[2]

    def _ask(self, job: RunJob, source: ModelSource) -> KeptModel:
        from rsgeoseg.engine.cluster import ask_facts  # noqa: PLC0415  (an extra)

        return KeptModel(ask_facts(self.client(job), source, job.device), load=lambda: source(job.device))

    def devices(self, job: RunJob) -> tuple[str, ...]:
        """Return the devices of a job's workers, in turn; those of a running cluster are told what the user said."""
        if job.workers is None:
            return (job.device,)
        model = self.segmenter(job)
        return model.devices if isinstance(model, KeptModel) else self.source(job).devices(job.device)

    def start(self, job: RunJob) -> None:
        """Start a job's processes, if it wants some; they load its model.

        A cluster that others run is left alone until the run begins, and nothing is started for an output that may be
        finished.

        Raises:
            UsageError, ClusterError: as ``client``.
            ModelError, WeightsError: there is no such model, or its weights cannot be fetched.
        """
        if job.workers is None:
            return
        leave_if_imported_by_a_worker()
        if self._given is None:
            model_source(job).fetch()  # once, before all processes want it
        if job.resume and job.output is not None and Path(job.output).exists():
            return
        client = self.client(job)
        if self._given is None:
            from rsgeoseg.engine.cluster import keep_model  # noqa: PLC0415  (an extra)

            self._kept = (self.source(job), job.device)
            keep_model(client, *self._kept)

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
