"""The control channel, from certificates to desired state: the GMN's end and the data nodes'."""
