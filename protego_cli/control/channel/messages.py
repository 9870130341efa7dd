"""Every message of the control channel.

`desired_records.py` has what data nodes are to hold, `node_messages.py` what they and the GMN say to each
other, `operator_messages.py` and `pool_messages.py` what operators ask. Node addresses are text, SPIs and
VNIs integers, times wall-clock seconds, MACs and keys bytes. No key shows in a repr (`message.SECRETS`).
"""

from __future__ import annotations

from protego_cli.control.channel.message import Failed
from protego_cli.control.channel.node_messages import NodeReply, NodeRequest
from protego_cli.control.channel.operator_messages import OperatorReply, OperatorRequest

AnyRequest = NodeRequest | OperatorRequest
AnyReply = NodeReply | OperatorReply | Failed
