"""What holds an image back: overcompletion, fidelity and table checks."""
