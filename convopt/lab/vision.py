"""torchvision, also where torch is a CPU build and torchvision's wheel a CUDA one."""

from types import ModuleType

import torch


def torchvision() -> ModuleType:
    """torchvision with its data sets and models.

    Its CUDA wheel registers fake kernels for operators that only its CUDA library defines; beside a CPU build of torch,
    declaring their schemas is enough for data sets and models. Where torchvision imports by itself, nothing is done.
    """
    try:
        import torchvision.datasets
        import torchvision.models
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        import torchvision.datasets
        import torchvision.models
    return torchvision


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The declarations live as long as this object.
    torch._convopt_torchvision_operators = library
