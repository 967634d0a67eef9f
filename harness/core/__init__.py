"""The one idea: stages whose fields are their identity, their store, what stood behind a value. No model here."""
