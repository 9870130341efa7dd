"""The gateway's CHILD_SAs: which lies where, which one seals, and what nodes are told of it."""
