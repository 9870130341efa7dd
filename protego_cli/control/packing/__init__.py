"""Which GPN a tunnel goes to, and the long work of moving many."""
