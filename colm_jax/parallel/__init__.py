"""Where arrays live: the mesh, and one table from logical axes to mesh axes."""

from colm_jax.parallel.mesh import RULES, by_text, make_mesh, on_mesh, replicated, shardings, spec_of

__all__ = ["RULES", "by_text", "make_mesh", "on_mesh", "replicated", "shardings", "spec_of"]
