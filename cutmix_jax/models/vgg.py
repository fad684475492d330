"""VGG-16 with global average pooling, the network for class activation maps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax.models.layers import Network, Tap, head
from cutmix_jax.models.pooling import max_pool

# Convolutions per stage, and their channels.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG(Network):
    """VGG-16 without its fifth pooling, then 'conv6' (3x3, 1024 channels), average and 'fc'.

    For images [B, H, W, C], normalized, float; returns float32 logits [B, K]. Convolutions have
    biases, and there are no norms. At 224x224 the last map is 14x14. Modules have torchvision's
    names, with `features.0` written `features_0`. Feature maps have the names of the VGG paper,
    and are taken after the activation and before the pooling.

    Attributes: those of `layers.Network`, except for norms and blocks.

    Reference:
        Zhou, Khosla, Lapedriza, Oliva, Torralba. Learning Deep Features for Discriminative
        Localization. 2016.
    """

    width: int = 64

    feature_names = ("image", "conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "conv6")
    total_stride = 16
    stages = 0  # of residual blocks

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        tap: Tap | None = None,
        progress: jax.Array | float = 1.0,
    ) -> jax.Array:
        tap = tap or (lambda name, x: x)
        conv = functools.partial(self.make_conv(), use_bias=True)

        x, number = jnp.asarray(tap("image", images), self.dtype), 0
        for stage, (convolutions, channels) in enumerate(STAGES, 1):
            if stage > 1:
                x = max_pool(x, 2, 2)
                number += 1
            for _ in range(convolutions):
                features = channels * self.width // 64
                x = self.act(conv(features, 3, name=f"features_{number}")(x))
                number += 2  # the activation has a number too
            x = tap(f"conv{stage}_{convolutions}", x)
        x = tap("conv6", self.act(conv(16 * self.width, 3, name="conv6")(x)))
        return head(self.num_classes, x)


NETS = {"vgg16_gap": functools.partial(VGG, width=64)}
