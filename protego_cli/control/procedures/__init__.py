"""What happens to tunnels: the peer's wishes, moves, rekeys, lifetimes, recovery, restarts."""
