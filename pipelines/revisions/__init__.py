"""Models trained on a shop's own catalogue: registered, compared, promoted and rolled back."""
