"""Export to a phone: backends, verified .pte files, their manifests, latency.

ExecuTorch is imported by the functions that need it: ``pip install 'lightning-prune[mobile]'``.
"""

from lightning_prune.deploy.artifact import Artifact, load_manifest
from lightning_prune.deploy.backends import XNNPACK, Backend
from lightning_prune.deploy.export import export
from lightning_prune.deploy.latency import Latencies, Latency, latency
from lightning_prune.deploy.latency_table import LatencyTable, WidthCurve, latency_table
from lightning_prune.deploy.runtime import RuntimeModel, thread_count
from lightning_prune.deploy.signature import TensorSpec
from lightning_prune.deploy.verification import Verification

__all__ = [
    "XNNPACK",
    "Artifact",
    "Backend",
    "Latencies",
    "Latency",
    "LatencyTable",
    "RuntimeModel",
    "TensorSpec",
    "Verification",
    "WidthCurve",
    "export",
    "latency",
    "latency_table",
    "load_manifest",
    "thread_count",
]
