"""What a run exported, read and checked: `Export` has every file of a folder.

What the lines hold is described in `harness.core.records`. Everything that can be wrong with a file
is said here, in one line with file and line number; what comes after may trust its input.
"""
