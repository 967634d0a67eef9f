"""From rows to the numbers of a report: intervals, tests, ranks, effects, the table's entries."""
