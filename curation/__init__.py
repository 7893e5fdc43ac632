"""What `curate.py` needs: nearest neighbours, image hashes, features, results that survive a kill. (§3)"""
