"""From a model to rows and items: perplexity, lm-eval's tasks, diagnostics, the sandbox."""
