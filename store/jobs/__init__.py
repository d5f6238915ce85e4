"""Jobs in the tables: their states, who runs them, and what owners and workers may do with them."""
