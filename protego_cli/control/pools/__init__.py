"""GPNs that come and go: provisioners, join tokens, the elastic controller."""
