"""The one idea: stages whose fields are their identity, their store, what is behind a value."""
