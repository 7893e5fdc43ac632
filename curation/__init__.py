"""What curate.py needs besides the paper: neighbours, hashes, sources and work files (§3)."""
