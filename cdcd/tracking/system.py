"""What the machine does during a run, under the names of MLflow's tab "System metrics".

MLflow's own monitor talks to the store from a thread of its own, past the buffer and the spool.
Here its probes are asked where the run logs anyway, so nothing needs to be stopped at the end.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0


class SystemMetrics:
    """CPU, memory, disk and network of the machine, its GPUs where it has some, and this process.

    Args:
        interval_seconds: between two samples.
    """

    def __init__(self, interval_seconds: float = SAMPLE_SECONDS) -> None:
        self._interval = interval_seconds
        self._due = 0.0
        self._probes: list[Any] | None = None

    def sample(self) -> dict[str, float]:
        """Numbers by name, `system/…`; nothing before the next sample is due."""
        if time.monotonic() < self._due:
            return {}
        try:
            if self._probes is None:
                self._probes = _make_probes()
            found = self._collect()
        except Exception as error:  # a container may hide what the probes read
            logger.debug("no system metrics: %s", error)
            self._due = float("inf")
            return {}
        self._due = time.monotonic() + self._interval
        return found

    def _collect(self) -> dict[str, float]:
        import psutil  # type: ignore[import-untyped]

        found = {"system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6}
        for probe in self._probes or []:
            probe.collect_metrics()
            metrics = probe.aggregate_metrics()
            probe.clear_metrics()
            found |= {f"system/{name}": float(value) for name, value in metrics.items()}
        return found


def _make_probes() -> list[Any]:
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    psutil.cpu_percent(0.05)  # the first answer without a wait would be zero
    probes: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for accelerator in (GPUMonitor, ROCMMonitor):
        with contextlib.suppress(Exception):  # none there, or its package is not installed
            probes.append(accelerator())
            break
    return probes
