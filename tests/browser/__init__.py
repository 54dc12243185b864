"""Pages in a real browser: what they show, what they ask the network for, and what keeps people from reading them."""
