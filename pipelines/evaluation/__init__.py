"""What measures the product: cutouts, descriptions, the overcompletion detector, the paper's experiment."""
