"""What a network is worth: scores and the loop that takes them."""
