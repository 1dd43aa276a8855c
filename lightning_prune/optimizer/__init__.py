"""What happens to optimizer, learning rate and weights after an event."""
