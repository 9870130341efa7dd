"""What must survive a GMN: stores, and the journal that stores before anything is revealed."""
