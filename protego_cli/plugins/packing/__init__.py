"""How the built-in packing policies calculate: loaded, and numpy with it, when first asked for a plan."""
