"""Processor, memory, disk, network and GPU of the machine while a model is trained.

MLflow's own monitor stops for ever at the first call that its server does not answer, and asks the server at every sample. Here
MLflow's gauges are read, and what they say goes the way of all other points: buffered, kept when nobody takes it, sent later.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL_SECONDS = 10.0
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

logger = logging.getLogger(__name__)


class SystemSampler:
    """`record(step, {"system/cpu_utilization_percentage": 93.0, ...})` every ten seconds and at the end, from a daemon thread.

    The step is the number of intervals since `started_at` (seconds since 1970), so a resumed run goes on where it was.
    Nothing here raises; `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` turns it off.
    """

    def __init__(
        self, record: Callable[[int, Mapping[str, float]], None], started_at: float, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._record = record
        self._started_at = started_at
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="system metrics")

    def start(self) -> None:
        if os.environ.get(SWITCH, "true").strip().lower() not in ("false", "0"):
            self._thread.start()

    def stop(self) -> None:
        """Take the last sample; a gauge that hangs (a GPU that fell off its bus) is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        try:
            gauges = open_gauges()
            read_gauges(gauges)  # the first reading of a processor's load says nothing: it is since the reading before
            is_last = False
            while not is_last:
                is_last = self._stop.wait(self._interval_seconds)
                step = int((time.time() - self._started_at) / self._interval_seconds)
                self._record(step, read_gauges(gauges))
        except Exception as error:  # a broken gauge may raise anything, and no training ends for a gauge
            logger.warning("No more system metrics of this training: %s", error)


def open_gauges() -> list[Any]:
    """MLflow's monitors; the one of the GPU where pynvml and a GPU are."""
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    kinds: list[Any] = [cpu_monitor.CPUMonitor, disk_monitor.DiskMonitor, network_monitor.NetworkMonitor]
    gauges = [kind() for kind in kinds]
    gpu: Any = gpu_monitor.GPUMonitor
    try:
        return [*gauges, gpu()]
    except Exception:  # ImportError without pynvml, RuntimeError without a GPU, and what a driver may raise
        return gauges


def read_gauges(gauges: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for gauge in gauges:
        gauge.collect_metrics()
        values |= {f"system/{key}": float(value) for key, value in gauge.aggregate_metrics().items()}
        gauge.clear_metrics()
    return values
