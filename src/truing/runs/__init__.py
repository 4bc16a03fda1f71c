"""What lies in output folders: claimed by one process, listed, compared, verified, removed.

No torch: these are verbs that answer at once.
"""
