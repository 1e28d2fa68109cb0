"""What the operator uses: health, the command line."""
