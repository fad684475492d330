"""CIFAR-10 as in the paper (Table 7).

    python main.py --config configs/cifar10.py:pyramidnet200,cutmix

Expected top-1 error after 300 epochs, best epoch (the paper, mean of three runs):

    pyramidnet200,baseline    3.85 %    pyramidnet200,mixup             3.09 %
    pyramidnet200,cutout      3.10 %    pyramidnet200,manifold_mixup    3.15 %
    pyramidnet200,cutmix      2.88 %

Hardware, time and all other settings are those of `configs/cifar.py`.
"""

from configs import cifar


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default pyramidnet200,cutmix."""
    model, _, method = (arg or "").partition(",")
    config = cifar.get_config(f"{model or 'pyramidnet200'},{method}")
    config.dataset = "cifar10"
    return config
