"""
Prometheus metrics of jobs, queues and workers.

What this process does is counted by `JobMetrics`; what the database holds is read by `QueueCollector` at a scrape.
"""

from __future__ import annotations

from pyprocrastinate_prometheus._jobs import OTHER, JobMetrics
from pyprocrastinate_prometheus._plugin import Plugin
from pyprocrastinate_prometheus._queues import QueueCollector

__all__ = ["OTHER", "JobMetrics", "Plugin", "QueueCollector", "plugin"]

plugin = Plugin()
