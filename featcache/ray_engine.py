"""Parts made by a Ray cluster: Ray schedules, and does again what a lost node had in hand.

The cache, the images and the weights' files must lie on storage that every node sees under the same path, and cxr must
be installed on every node.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Generator, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from featcache.engines import import_path
from featcache.errors import CxrError, EngineError
from featcache.making import PartMaker
from featcache.progress import Clock
from featcache.work import Brief, Chunk, Made, from_json, to_json

CHUNKS_A_TASK = 4
"""So few that little is lost with a node and so many that reading the first images costs little."""

RETRIES = 5
"""How often Ray does a task again whose node or process died."""


class OnRay:
    """One task a few chunks, with as many processors as ``threads``, or ``gpus`` GPUs.

    Attributes:
        workers: tasks that the cluster can run at once.
    """

    def __init__(self, *, threads: int, gpus: float = 0.0, address: str | None = None) -> None:
        """Connect to the cluster at ``address``, to that of ``RAY_ADDRESS``, or start one on this machine.

        Raises:
            EngineError: Ray is not installed, or there is no such cluster.
        """
        # Ray would report its use to its makers.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise EngineError("--engine ray needs Ray: pip install 'cxr[ray]'") from error
        self.ray, self.threads, self.gpus = ray, threads, gpus
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise EngineError(f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS')}: {error}") from error
        wanted = {"CPU": threads, **({"GPU": gpus} if gpus else {})}
        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray types only half of it
        held = [node["Resources"] for node in nodes if node["Alive"]]
        self.workers = sum(int(min(has.get(kind, 0) // need for kind, need in wanted.items())) for has in held)
        if not self.workers:
            # Ray would wait for such a node for ever.
            raise EngineError(
                f"no node of the Ray cluster has {threads} processors and {gpus:g} GPUs for a task: ask for less with "
                "--threads and --ray-gpus"
            )

    def __call__(self, brief: Brief, chunks: Iterable[Chunk], clock: Clock) -> Generator[Made]:
        """See ``engines.Engine``.

        Raises:
            EngineError: a task was lost too often, or could not be started.
            CxrError: what a task reported.
        """
        stores = tuple(store.absolute() for store in brief.stores)
        sources = tuple(
            dataclasses.replace(
                source,
                weights=str(Path(source.weights).absolute())
                if source.weights is not None and Path(source.weights).is_file()
                else source.weights,
            )
            for source in brief.sources
        )
        everywhere = to_json(
            dataclasses.replace(brief, root=brief.root.absolute(), stores=stores, sources=sources, threads=self.threads)
        )
        task = self.ray.remote(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            max_retries=RETRIES,
            runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
        )(make_chunks)
        left = iter(chunks)
        under_way: list[Any] = []
        try:
            while True:
                # Twice what runs: no node waits for its next task, and the driver holds no million of them.
                while len(under_way) < 2 * self.workers and (batch := list(islice(left, CHUNKS_A_TASK))):
                    under_way.append(task.remote(everywhere, [to_json(chunk) for chunk in batch]))
                if not under_way:
                    return
                (ready,), under_way = self.ray.wait(under_way, num_returns=1)
                outcomes = [from_json(Made, text) for text in self._result(ready)]
                clock.tick(sum(made.images for made in outcomes), sum(made.waited for made in outcomes))
                yield from outcomes
        finally:
            for waiting in under_way:
                self.ray.cancel(waiting)

    def _result(self, ready: Any) -> list[str]:  # noqa: ANN401 - Ray has no type for it
        try:
            result: list[str] = self.ray.get(ready)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CxrError):
                raise error.cause from error
            raise
        except self.ray.exceptions.RayError as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise EngineError(f"Ray could not run a task ({said}): finished parts are kept") from error
        return result


def make_chunks(brief: str, chunks: list[str]) -> list[str]:
    """What a task does: the JSON of a brief and chunks to that of what came of them.

    What an earlier try of the same task has written is found and not made again.
    """
    maker = _maker(brief)
    return [to_json(made) for made in maker.make(from_json(Chunk, chunk) for chunk in chunks)]


@functools.lru_cache(1)
def _maker(brief: str) -> PartMaker:
    """Ray runs one task after the other in a process: its networks are loaded once."""
    return PartMaker(from_json(Brief, brief))
