"""From text to typed values: YAML with line numbers, settings by dotted path."""
