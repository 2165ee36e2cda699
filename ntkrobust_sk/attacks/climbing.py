"""What all attacks by gradients share: they tell which gradients were lost on the way."""

from __future__ import annotations


class Climbing:
    """Attacks that go by gradients, and tell at which examples these were not finite.

    They have ``examples(model, x, y, key)``, which returns adversarial examples (n, ...) and whether at some point
    on the way a gradient was not finite (n,).
    """

    needs_gradients = True
    one_key_each = True

    def __call__(self, model, x, y, *, key):
        """Adversarial examples.

        Parameters
        ----------
        model : callable
            ``x -> scores`` (n, C). A pytree (a Model, a predictor) shares compiled code with others of its
            structure; a bare function is compiled for itself.
        x : array (n, ...)
        y : array (n,) of int labels 0..C-1, or array of real targets shaped like the scores
        key : JAX PRNG key, or one for each example (n,)

        Returns
        -------
        array (n, ...)
        """
        return self.examples(model, x, y, key)[0]
