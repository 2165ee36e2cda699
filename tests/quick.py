"""What spares tests compilation: most of their time is that."""

import jax

from ntkrobust_sk import ResNet18


class OneBlock(ResNet18):
    """The stem and one block of eight: strides, a shortcut, and batch norm with its statistics."""

    def _blocks(self):
        yield "block", self.width, 8 * self.width, 2


@jax.jit
def answers(model, x):
    """Scores by one program; a model that is called outside of any compiles one for each operation."""
    return model(x)
