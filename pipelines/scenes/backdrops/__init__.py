"""Pictures that the bundled scenes lay behind products, and the script that rendered them."""
