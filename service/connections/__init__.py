"""What happens to connections below their requests: who may connect, how slowly, which heads."""
