"""Export to a phone: backends, verified .pte files, their manifests, latency.

ExecuTorch is imported by the functions that need it: ``pip install 'lightning-prune[mobile]'``.
"""

from lightning_prune.deploy.acceptance import Accepted, accepted
from lightning_prune.deploy.artifact.artifact import Artifact, load_manifest
from lightning_prune.deploy.backends import (
    XNNPACK,
    Backend,
    CoreML,
    EthosU,
    Linear8,
    Palette,
    Partitioned,
    Portable,
    Vulkan,
)
from lightning_prune.deploy.backends.coreml_weights import decompressed, stored_weights
from lightning_prune.deploy.benchmark import Timing, Timings, benchmark
from lightning_prune.deploy.bundles import Bundle, export_android, export_ios
from lightning_prune.deploy.cached_decoder import CachedDecoder
from lightning_prune.deploy.checking.comparison import Bounds, OutputError
from lightning_prune.deploy.checking.verification import Verification
from lightning_prune.deploy.export import export
from lightning_prune.deploy.inspect import Inspection, inspect
from lightning_prune.deploy.latency_table import latency_table
from lightning_prune.deploy.onnx_file import OnnxArtifact, export_onnx
from lightning_prune.deploy.probe import Probe, ProbeResults
from lightning_prune.deploy.probing import export_probe, run_probe
from lightning_prune.deploy.program.generation import Generation
from lightning_prune.deploy.program.methods import Method
from lightning_prune.deploy.program.picture import Crop, Pad, Picture, Stretch
from lightning_prune.deploy.program.preprocessing import Normalize
from lightning_prune.deploy.program.sequences import Sequences
from lightning_prune.deploy.program.signature import MethodSpec, TensorSpec
from lightning_prune.deploy.quantization import Int4Groupwise, Int8, Int8Dynamic, Quantization, Quantized
from lightning_prune.deploy.runtime.model import RuntimeModel, thread_count
from lightning_prune.deploy.runtime.profiling import Profile
from lightning_prune.deploy.runtime.session import Session
from lightning_prune.deploy.verify import verify
from lightning_prune.selection.latency import LatencyTable

__all__ = [
    "XNNPACK",
    "Accepted",
    "Artifact",
    "Backend",
    "Bounds",
    "Bundle",
    "CachedDecoder",
    "CoreML",
    "Crop",
    "EthosU",
    "Generation",
    "Inspection",
    "Int4Groupwise",
    "Int8",
    "Int8Dynamic",
    "LatencyTable",
    "Linear8",
    "Method",
    "MethodSpec",
    "Normalize",
    "OnnxArtifact",
    "OutputError",
    "Pad",
    "Palette",
    "Partitioned",
    "Picture",
    "Portable",
    "Probe",
    "ProbeResults",
    "Profile",
    "Quantization",
    "Quantized",
    "RuntimeModel",
    "Sequences",
    "Session",
    "Stretch",
    "TensorSpec",
    "Timing",
    "Timings",
    "Verification",
    "Vulkan",
    "accepted",
    "benchmark",
    "decompressed",
    "export",
    "export_android",
    "export_ios",
    "export_onnx",
    "export_probe",
    "inspect",
    "latency_table",
    "load_manifest",
    "run_probe",
    "stored_weights",
    "thread_count",
    "verify",
]
