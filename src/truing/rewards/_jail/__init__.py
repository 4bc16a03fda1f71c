"""What runs inside the sandbox. Standard library only: the interpreter may be another one.

`_sandbox.py` starts `_start.main` in a process of its own; nothing here is imported by Truing.
"""
