"""From rows to prompts: templates, label words, and examples that come first."""
