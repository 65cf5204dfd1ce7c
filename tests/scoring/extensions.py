"""Which of DeepSpeed's C++ extensions are in the build cache."""

import os
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root


def deepspeed_adam_is_built() -> bool:
    """FusedAdam; a build in the middle of the tests would take over a minute."""
    return is_built("fused_adam")


def is_built(name: str | None) -> bool:
    """True for None, which needs no build."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return name is None or any(root.glob(f"**/{name}.so"))
