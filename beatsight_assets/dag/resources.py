"""The one resource: where the data lies, by which limits it is judged, and who hears of progress.

Belongs here: the bridge from Dagster's configuration to `Settings`, and from a stage's report or error to Dagster's. Does not belong
here: paths (`settings.DataLayout`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dagster as dg

from beatsight_assets import clock
from beatsight_assets.dag import metadata
from beatsight_assets.errors import BeatSightError
from beatsight_assets.settings import DataLayout, Settings
from beatsight_assets.stages import Progress, Report

LOG_EVERY_S = 5.0


def in_run_log() -> Progress:
    """Progress as lines of the run's log page: the first at once, then one per LOG_EVERY_S, because each is a row in the database."""
    logger = dg.get_dagster_logger("progress")
    last_s: float | None = None

    def say(text: str) -> None:
        nonlocal last_s
        now_s = clock.monotonic_s()
        if last_s is None or now_s - last_s >= LOG_EVERY_S:
            last_s = now_s
            logger.info(text)

    return say


_listener: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def progress_to(listener: Progress) -> Iterator[None]:
    """Send the progress of stages that run in this context to `listener` instead of the log of the run."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Lake(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The data root and how work on it is done."""

    data_root: str
    profile: str = "dev"
    executor: str = "inline"
    n_workers: int = 1
    model_path: str | None = None

    @property
    def settings(self) -> Settings:
        """Settings of this run; configs are read from the data root, else from the package."""
        layout = DataLayout(Path(self.data_root).expanduser().absolute())
        return Settings(layout, self.profile, self.executor, self.n_workers, self.model_path)

    def perform(self, stage: Callable[..., Report], *args: Any) -> dg.MaterializeResult:
        """Run a stage, show its progress, describe its report.

        Raises
        ------
        dg.Failure : the stage refused; what it said is the description, and nothing is tried again
        """
        settings = self.settings
        try:
            report = stage(settings, *args, progress=_listener.get() or in_run_log())
        except BeatSightError as error:
            raise dg.Failure(str(error), metadata={"code": error.code, "where": error.where or "-"}, allow_retries=False) from error
        return metadata.result(settings, report)
